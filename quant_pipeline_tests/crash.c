/* Preloaded into a process, it counts calls that change files below a folder, and at one of them
   kills the process: before it, after it, or half through what it writes. Or, told "full", it lets
   that write and all later ones find no room; told "fails", it lets one sync fail, that one or the
   next. What it was called for it lists on a file. It can also set the clock. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static atomic_long calls;
static long at;
static char root[PATH_MAX], how[16];
static int list = -1;
static atomic_int failed;

/* From now on count calls below a folder, and die at the n-th (0: at none). */
void crash_arm(const char *folder, long n, const char *when, int listed) {
    snprintf(root, sizeof root, "%s", folder);
    snprintf(how, sizeof how, "%s", when);
    atomic_store(&calls, 0);
    atomic_store(&failed, 0);
    at = n;
    list = listed;
}

static int is_ours(const char *path) {
    return *root && path && strncmp(path, root, strlen(root)) == 0;
}

/* Whether a file is one of ours; its path. */
static int is_our_file(int fd, char *path) {
    char link[64];
    if (!*root) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return is_ours(path);
}

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

enum { GO_ON, DIE_AFTER, NO_ROOM, NO_SYNC };

/* What is to become of this call; dies at once if it is to die before it. */
static int fate(int ours, const char *kind, const char *path) {
    if (!ours) return GO_ON;
    long mine = atomic_fetch_add(&calls, 1) + 1;
    if (list >= 0) {
        char line[PATH_MAX + 32];
        int n = snprintf(line, sizeof line, "%s %s\n", kind, path + strlen(root));
        if (syscall(SYS_write, list, line, n) != n) die();
    }
    if (!at || mine < at) return GO_ON;
    if (strcmp(how, "full") == 0) return NO_ROOM;
    if (strcmp(how, "fails") == 0)
        return strcmp(kind, "sync") == 0 && !atomic_exchange(&failed, 1) ? NO_SYNC : GO_ON;
    if (mine != at) return GO_ON;
    if (strcmp(how, "before") == 0) die();
    return DIE_AFTER;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* What a write comes to that is not just done; a full disk takes no byte. */
#define WRITTEN(fd, put_half, put_all) \
    char path[PATH_MAX]; \
    switch (fate(is_our_file(fd, path), "write", path)) { \
        case DIE_AFTER: \
            if (strcmp(how, "half") == 0) put_half; else put_all; \
            die(); \
            break; \
        case NO_ROOM: \
            errno = ENOSPC; \
            return -1; \
    } \
    return put_all

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    WRITTEN(fd, real(fd, data, n / 2), real(fd, data, n));
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t where) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    WRITTEN(fd, real(fd, data, n / 2, where), real(fd, data, n, where));
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t where) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    WRITTEN(fd, real(fd, data, n / 2, where), real(fd, data, n, where));
}

#define OF_FILE(name) \
    int name(int fd) { \
        REAL(int, #name, int); \
        char path[PATH_MAX]; \
        int fated = fate(is_our_file(fd, path), "sync", path); \
        if (fated == NO_SYNC) { errno = EIO; return -1; } \
        int done = real(fd); \
        if (fated == DIE_AFTER) die(); \
        return done; \
    }
OF_FILE(fsync)
OF_FILE(fdatasync)

#define CUT(name) \
    int name(int fd, off_t n) { \
        REAL(int, #name, int, off_t); \
        char path[PATH_MAX]; \
        int done, fated = fate(is_our_file(fd, path), "cut", path); \
        done = real(fd, n); \
        if (fated == DIE_AFTER) die(); \
        return done; \
    }
CUT(ftruncate)
CUT(ftruncate64)

ssize_t writev(int fd, const struct iovec *data, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    WRITTEN(fd, real(fd, data, n / 2), real(fd, data, n));
}

#define SENT(name) \
    ssize_t name(int to, int from, off_t *start, size_t n) { \
        REAL(ssize_t, #name, int, int, off_t *, size_t); \
        WRITTEN(to, real(to, from, start, n / 2), real(to, from, start, n)); \
    }
SENT(sendfile)
SENT(sendfile64)

ssize_t copy_file_range(int from, off_t *start, int to, off_t *where, size_t n, unsigned how_) {
    REAL(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned);
    WRITTEN(to, real(from, start, to, where, n / 2, how_), real(from, start, to, where, n, how_));
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    int fated = fate(is_ours(from) || is_ours(to), "rename", is_ours(to) ? to : from);
    int done = real(from, to);
    if (fated == DIE_AFTER) die();
    return done;
}

#define GONE(name) \
    int name(const char *path) { \
        REAL(int, #name, const char *); \
        int fated = fate(is_ours(path), "unlink", path); \
        int done = real(path); \
        if (fated == DIE_AFTER) die(); \
        return done; \
    }
GONE(unlink)
GONE(remove)
GONE(rmdir)

static atomic_long shift;

/* From now on the clock is so many seconds ahead. */
void crash_shift(long seconds) { atomic_store(&shift, seconds); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int done = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += atomic_load(&shift);
    return done;
}
