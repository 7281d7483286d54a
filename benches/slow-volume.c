/* A volume on a network, for benchmarks: every call on a path below SLOW_PATH first waits SLOW_MICROSECONDS.
 *
 *   cc -O2 -shared -fPIC -o slow-volume.so slow-volume.c -ldl
 *   SLOW_PATH=/srv/pulp SLOW_MICROSECONDS=5000 LD_PRELOAD=$PWD/slow-volume.so program
 *
 * Calls of the C library that look at or change names, and those that make bytes durable. Reading and writing an open
 * file is not slowed down: such a volume caches it. SLOW_COUNT names a file to which the number of calls slowed is
 * written at the end, one line a process.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *below;
static size_t length;
static long microseconds;
static atomic_long calls;

__attribute__((constructor)) static void begin(void) {
    const char *wait = getenv("SLOW_MICROSECONDS");
    below = getenv("SLOW_PATH");
    length = below ? strlen(below) : 0;
    microseconds = wait ? atol(wait) : 0;
}

__attribute__((destructor)) static void end(void) {
    const char *name = getenv("SLOW_COUNT");
    FILE *file = name ? fopen(name, "a") : NULL;
    if (!file) return;
    fprintf(file, "%ld\n", atomic_load(&calls));
    fclose(file);
}

static void wait_once(void) {
    struct timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};
    atomic_fetch_add(&calls, 1);
    while (nanosleep(&left, &left) != 0) {}
}

static int is_slow(const char *path) {
    return length && path && strncmp(path, below, length) == 0;
}

static int is_slow_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = length ? readlinkat(AT_FDCWD, link, path, sizeof path - 1) : -1;
    if (size < 0) return 0;
    path[size] = 0;
    return is_slow(path);
}

static int is_slow_at(int fd, const char *path) {
    if (path && path[0] == '/') return is_slow(path);
    return fd >= 0 && is_slow_fd(fd);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
/* One look-up a function and process. */
#define CALL(name, ...) \
    static __typeof__(&name) next; \
    if (!next) next = NEXT(name); \
    return next(__VA_ARGS__)

#define SLOW_BY_PATH(type, name, parameters, path, ...) \
    type name parameters { if (is_slow(path)) wait_once(); CALL(name, __VA_ARGS__); }
#define SLOW_AT(type, name, parameters, fd, path, ...) \
    type name parameters { if (is_slow_at(fd, path)) wait_once(); CALL(name, __VA_ARGS__); }

SLOW_BY_PATH(int, rename, (const char *from, const char *to), to, from, to)
SLOW_BY_PATH(int, symlink, (const char *target, const char *link), link, target, link)
SLOW_BY_PATH(int, mkdir, (const char *path, mode_t mode), path, path, mode)
SLOW_BY_PATH(int, rmdir, (const char *path), path, path)
SLOW_BY_PATH(int, unlink, (const char *path), path, path)
SLOW_BY_PATH(int, access, (const char *path, int mode), path, path, mode)
SLOW_BY_PATH(int, stat, (const char *path, struct stat *into), path, path, into)
SLOW_BY_PATH(int, lstat, (const char *path, struct stat *into), path, path, into)
SLOW_BY_PATH(int, stat64, (const char *path, struct stat64 *into), path, path, into)
SLOW_BY_PATH(int, lstat64, (const char *path, struct stat64 *into), path, path, into)
SLOW_BY_PATH(ssize_t, readlink, (const char *path, char *into, size_t size), path, path, into, size)
SLOW_BY_PATH(DIR *, opendir, (const char *path), path, path)
SLOW_AT(int, link, (const char *from, const char *to), AT_FDCWD, to, from, to)
SLOW_AT(int, linkat, (int fd, const char *from, int into, const char *to, int flags), into, to, fd, from, into, to, flags)
SLOW_AT(int, symlinkat, (const char *target, int fd, const char *link), fd, link, target, fd, link)
SLOW_AT(int, renameat, (int fd, const char *from, int into, const char *to), into, to, fd, from, into, to)
SLOW_AT(int, mkdirat, (int fd, const char *path, mode_t mode), fd, path, fd, path, mode)
SLOW_AT(int, unlinkat, (int fd, const char *path, int flags), fd, path, fd, path, flags)
SLOW_AT(int, fstatat, (int fd, const char *path, struct stat *into, int flags), fd, path, fd, path, into, flags)
SLOW_AT(int, fstatat64, (int fd, const char *path, struct stat64 *into, int flags), fd, path, fd, path, into, flags)
SLOW_AT(int, statx, (int fd, const char *restrict path, int flags, unsigned mask, struct statx *restrict into), fd, path,
        fd, path, flags, mask, into)

int fsync(int fd) { if (is_slow_fd(fd)) wait_once(); CALL(fsync, fd); }
int fdatasync(int fd) { if (is_slow_fd(fd)) wait_once(); CALL(fdatasync, fd); }

/* Looks at each directory on the way. */
char *realpath(const char *path, char *into) {
    if (is_slow(path))
        for (const char *at = path + length; *at; at++)
            if (*at == '/' || !at[1]) wait_once();
    CALL(realpath, path, into);
}

#define SLOW_OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (is_slow(path)) wait_once(); \
        CALL(name, path, flags, mode); \
    }
SLOW_OPEN(open)
SLOW_OPEN(open64)

#define SLOW_OPENAT(name) \
    int name(int fd, const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (is_slow_at(fd, path)) wait_once(); \
        CALL(name, fd, path, flags, mode); \
    }
SLOW_OPENAT(openat)
SLOW_OPENAT(openat64)
