"""Daily prices in, daily out-of-sample stock scores out; no score saw the future."""

import os

# LightGBM's threads wait for one another by spinning: beside any other busy program training then
# takes up to ten times as long. To be set before its OpenMP library is loaded; results stay equal.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
