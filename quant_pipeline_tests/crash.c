/* Preloaded into a process, it counts calls that change files below a folder, and kills the
   process at one of them: before it, after it, or half through what it writes. */
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
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;
static long at;
static char root[PATH_MAX], how[16];

/* From now on count calls below a folder, and die at the n-th (0: at none). */
void crash_arm(const char *folder, long n, const char *when) {
    snprintf(root, sizeof root, "%s", folder);
    snprintf(how, sizeof how, "%s", when);
    atomic_store(&calls, 0);
    at = n;
}

long crash_calls(void) { return atomic_load(&calls); }

static int is_ours(const char *path) {
    return *root && path && strncmp(path, root, strlen(root)) == 0;
}

static int is_our_file(int fd) {
    char link[64], path[PATH_MAX];
    if (!*root) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return is_ours(path);
}

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

/* Whether this call is the one; dies at once if it is to die before it. */
static int is_it(int ours) {
    if (!ours) return 0;
    long mine = atomic_fetch_add(&calls, 1) + 1;
    if (mine != at) return 0;
    if (strcmp(how, "before") == 0) die();
    return 1;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!is_it(is_our_file(fd))) return real(fd, data, n);
    real(fd, data, strcmp(how, "half") == 0 ? n / 2 : n);
    die();
    return -1;
}

static ssize_t put(ssize_t (*real)(int, const void *, size_t, off_t), int fd, const void *data,
                   size_t n, off_t where) {
    if (!is_it(is_our_file(fd))) return real(fd, data, n, where);
    real(fd, data, strcmp(how, "half") == 0 ? n / 2 : n, where);
    die();
    return -1;
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t where) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    return put(real, fd, data, n, where);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t where) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    return put(real, fd, data, n, where);
}

#define OF_FILE(name) \
    int name(int fd) { \
        REAL(int, #name, int); \
        if (!is_it(is_our_file(fd))) return real(fd); \
        real(fd); \
        die(); \
        return -1; \
    }
OF_FILE(fsync)
OF_FILE(fdatasync)

#define CUT(name) \
    int name(int fd, off_t n) { \
        REAL(int, #name, int, off_t); \
        if (!is_it(is_our_file(fd))) return real(fd, n); \
        real(fd, n); \
        die(); \
        return -1; \
    }
CUT(ftruncate)
CUT(ftruncate64)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (!is_it(is_ours(from) || is_ours(to))) return real(from, to);
    real(from, to);
    die();
    return -1;
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (!is_it(is_ours(path))) return real(path);
    real(path);
    die();
    return -1;
}
