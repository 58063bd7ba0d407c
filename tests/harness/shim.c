/* Faults of a disk, a resolver and a clock for one process, by LD_PRELOAD. A shared page that the test writes selects the faults:
   PGW_SHIM names the file; only regular files below PGW_SHIM_UNDER get disk faults. It does not see raw system calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct page { volatile uint32_t faults; volatile uint32_t hit; volatile int64_t clock_seconds; };
enum { EIO_ON_WRITE = 1, EIO_ON_SYNC = 2, NO_SPACE = 4, READ_ONLY = 8, RESOLVER_HANGS = 16 };

static struct page nothing, *page = &nothing;
static const char *under = "/nowhere";

__attribute__((constructor)) static void start(void) {
    const char *name = getenv("PGW_SHIM");
    if (getenv("PGW_SHIM_UNDER")) under = getenv("PGW_SHIM_UNDER");
    if (!name) return;
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int fd = real_open(name, O_RDWR | O_CLOEXEC);
    if (fd < 0) _exit(111);
    void *map = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) _exit(112);
    page = map;
    close(fd);
}

static int fails(int error) { __sync_fetch_and_add(&page->hit, 1); errno = error; return -1; }
static int path_is_ours(const char *path) { return strncmp(path, under, strlen(under)) == 0; }
static int ours(int fd) {
    struct stat about;
    char link[64], path[PATH_MAX];
    if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return path_is_ours(path);
}
static int error_on_write(int fd) {
    uint32_t now = page->faults;
    if (!(now & (EIO_ON_WRITE | NO_SPACE | READ_ONLY)) || !ours(fd)) return 0;
    return now & READ_ONLY ? EROFS : now & NO_SPACE ? ENOSPC : EIO;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define CHECKED(result, name, parameters, arguments, error) \
    result name parameters { \
        REAL(name); \
        int saved = errno, code = (error); \
        errno = saved; \
        return code ? fails(code) : real arguments; \
    }

CHECKED(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n), error_on_write(fd))
CHECKED(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n), error_on_write(fd))
CHECKED(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), error_on_write(fd))
CHECKED(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), error_on_write(fd))
CHECKED(int, ftruncate, (int fd, off_t n), (fd, n), error_on_write(fd))
CHECKED(int, ftruncate64, (int fd, off64_t n), (fd, n), error_on_write(fd))

static int error_on_sync(int fd) { return (page->faults & EIO_ON_SYNC) && ours(fd) ? EIO : 0; }
CHECKED(int, fsync, (int fd), (fd), error_on_sync(fd))
CHECKED(int, fdatasync, (int fd), (fd), error_on_sync(fd))
CHECKED(int, sync_file_range, (int fd, off64_t o, off64_t n, unsigned f), (fd, o, n, f), error_on_sync(fd))

static int error_on_change(const char *path) { return (page->faults & READ_ONLY) && path_is_ours(path) ? EROFS : 0; }
CHECKED(int, unlink, (const char *p), (p), error_on_change(p))
CHECKED(int, rmdir, (const char *p), (p), error_on_change(p))
CHECKED(int, mkdir, (const char *p, mode_t m), (p, m), (page->faults & NO_SPACE) && path_is_ours(p) ? ENOSPC : error_on_change(p))
CHECKED(int, rename, (const char *a, const char *b), (a, b), error_on_change(a))

static int error_on_open(const char *path, int flags) {
    uint32_t now = page->faults;
    if (!(now & (READ_ONLY | NO_SPACE)) || !path_is_ours(path)) return 0;
    if ((now & READ_ONLY) && (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))) return EROFS;
    return (now & NO_SPACE) && (flags & O_CREAT) && access(path, F_OK) != 0 ? ENOSPC : 0;
}
#define OPENED(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        int saved = errno, code = error_on_open(path, flags); \
        errno = saved; \
        return code ? fails(code) : real(path, flags, mode); \
    }
OPENED(open)
OPENED(open64)

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    REAL(getaddrinfo);
    while (page->faults & RESOLVER_HANGS) {
        page->hit++;
        usleep(20000);
    }
    return real(node, service, hints, result);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    REAL(clock_gettime);
    int result = real(clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec += page->clock_seconds;
    return result;
}
