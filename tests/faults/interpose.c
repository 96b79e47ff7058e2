/* A library to be preloaded into the program under test: it counts the calls that concern one folder, and makes one of
 * them fail. What libc functions the program calls is known from its own undefined symbols and from strace; a write that
 * went around them would be missing from the log, which the test notices.
 *
 * FAULTS_FOLDER  the folder, as an absolute path without links
 * FAULTS_LOG     a file outside of it; one line is appended for each call: number, function, bytes, name
 * FAULTS_AT      the number of the call to hit, from 1; 0 hits none
 * FAULTS_KIND    an errno by name (EIO), which the call then fails with
 *                EIO...  the same for that call and all later ones
 *                done+EIO  the call is made, and reported as failed, as network file systems may do
 *                short   half of the bytes are written
 *                short+ENOSPC  half of the bytes are written, and the next write fails
 *                kill-before, kill-after  SIGKILL on this side of the call
 *                kill-within  half of the bytes are written, then SIGKILL
 * FAULTS_EARLY   if set, sync_file_range is counted too: of several threads, its calls come in no order among the writes
 *
 * fsync does nothing here: what is tested is the order of the calls and what follows from an error, not the disk.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MOST 1024

static char folder[PATH_MAX], here[PATH_MAX];
static const char *kind = "";
static long at;
static int log_fd = -1, early;
static atomic_long count;
static atomic_int later; /* the errno that the next write fails with */
static char names[MOST][NAME_MAX + 1]; /* of the files in the folder, by descriptor */

__attribute__((constructor)) static void start(void) {
    const char *wanted = getenv("FAULTS_FOLDER"), *log = getenv("FAULTS_LOG");
    if (!wanted || !log) return;
    snprintf(folder, sizeof folder, "%s", wanted);
    if (!getcwd(here, sizeof here)) abort();
    kind = getenv("FAULTS_KIND") ? getenv("FAULTS_KIND") : "";
    at = getenv("FAULTS_AT") ? atol(getenv("FAULTS_AT")) : 0;
    early = getenv("FAULTS_EARLY") != NULL;
    log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) abort();
    unsetenv("LD_PRELOAD");
}

/* The name, if that path is the folder ("/") or directly in it. */
static const char *inside(const char *path) {
    static _Thread_local char whole[2 * PATH_MAX];
    size_t length = strlen(folder);
    if (!length || !path) return NULL;
    if (path[0] == '/') snprintf(whole, sizeof whole, "%s", path);
    else if (!strcmp(path, ".")) snprintf(whole, sizeof whole, "%s", here);
    else snprintf(whole, sizeof whole, "%s/%s", here, path);
    if (strncmp(whole, folder, length)) return NULL;
    if (!whole[length]) return "/";
    if (whole[length] != '/' || strchr(whole + length + 1, '/')) return NULL;
    return whole + length + 1;
}

static const char *name_of(int fd) { return fd >= 0 && fd < MOST && names[fd][0] ? names[fd] : NULL; }

static int number(const char *name) {
    static const struct { const char *name; int number; } known[] = {
        {"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EINTR", EINTR}, {"EXDEV", EXDEV}, {"EPERM", EPERM},
        {"EACCES", EACCES}, {"EMLINK", EMLINK}, {"EDQUOT", EDQUOT}, {"EOPNOTSUPP", EOPNOTSUPP},
        {"ENOSYS", ENOSYS}, {"ESPIPE", ESPIPE},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strncmp(name, known[i].name, strlen(known[i].name))) return known[i].number;
    return 0;
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

enum { PASS, HALF, THEN_DIE, HALF_THEN_DIE, THEN_FAIL, FAIL };

/* Counts a call, and says what is to become of it; FAIL with errno set. */
static int meet(const char *function, const char *name, size_t bytes) {
    char line[PATH_MAX + 64];
    long this = atomic_fetch_add(&count, 1) + 1;
    int length = snprintf(line, sizeof line, "%ld %s %zu %s\n", this, function, bytes, name);
    if (syscall(SYS_write, log_fd, line, length) != length) abort();
    int waiting = bytes ? atomic_exchange(&later, 0) : 0;
    if (waiting) {
        errno = waiting;
        return FAIL;
    }
    if (this != at && !(this > at && at > 0 && strstr(kind, "..."))) return PASS;
    if (!strcmp(kind, "kill-before")) die();
    if (!strcmp(kind, "kill-after")) return THEN_DIE;
    if (!strcmp(kind, "kill-within")) return HALF_THEN_DIE;
    if (!strcmp(kind, "done+EIO")) return THEN_FAIL;
    if (!strncmp(kind, "short", 5)) {
        if (strchr(kind, '+')) later = number(strchr(kind, '+') + 1);
        return HALF;
    }
    errno = number(kind);
    if (!errno) abort();
    return FAIL;
}

/* A call that is made whole or fails. */
#define CALL(function, name, call)                      \
    do {                                                \
        int fate = meet(function, name, 0);             \
        if (fate == FAIL) return -1;                    \
        __typeof__(call) result = (call);               \
        if (fate == THEN_FAIL) {                        \
            errno = EIO;                                \
            return -1;                                  \
        }                                               \
        if (fate != PASS) die();                        \
        return result;                                  \
    } while (0)

static int opened(int fd, const char *name) {
    if (fd >= 0 && fd < MOST) snprintf(names[fd], sizeof names[fd], "%s", name);
    return fd;
}

#define MODE()                                          \
    mode_t mode = 0;                                    \
    if (flags & O_CREAT) {                              \
        va_list rest;                                   \
        va_start(rest, flags);                          \
        mode = va_arg(rest, mode_t);                    \
        va_end(rest);                                   \
    }

int open(const char *path, int flags, ...) {
    MODE()
    const char *name = inside(path);
    if (!name) return REAL(open)(path, flags, mode);
    CALL(flags & O_CREAT ? "create" : "open", name, opened(REAL(open)(path, flags, mode), name));
}

int open64(const char *path, int flags, ...) {
    MODE()
    const char *name = inside(path);
    if (!name) return REAL(open64)(path, flags, mode);
    CALL(flags & O_CREAT ? "create" : "open", name, opened(REAL(open64)(path, flags, mode), name));
}

int openat(int dir, const char *path, int flags, ...) {
    MODE()
    const char *name = dir == AT_FDCWD || path[0] == '/' ? inside(path) : NULL;
    if (!name) return REAL(openat)(dir, path, flags, mode);
    CALL(flags & O_CREAT ? "create" : "open", name, opened(REAL(openat)(dir, path, flags, mode), name));
}

int openat64(int dir, const char *path, int flags, ...) {
    MODE()
    const char *name = dir == AT_FDCWD || path[0] == '/' ? inside(path) : NULL;
    if (!name) return REAL(openat64)(dir, path, flags, mode);
    CALL(flags & O_CREAT ? "create" : "open", name, opened(REAL(openat64)(dir, path, flags, mode), name));
}

int close(int fd) {
    if (name_of(fd)) names[fd][0] = 0;
    return REAL(close)(fd);
}

/* Writes whole or half: `amount` calls the real function for that many bytes. */
#define WRITE(bytes, amount)                            \
    do {                                                \
        int fate = meet("write", name, bytes);          \
        if (fate == FAIL) return -1;                    \
        size_t part = fate == HALF || fate == HALF_THEN_DIE ? ((bytes) + 1) / 2 : (bytes); \
        ssize_t result = (amount);                      \
        if (fate == THEN_DIE || fate == HALF_THEN_DIE) die(); \
        return result;                                  \
    } while (0)

ssize_t write(int fd, const void *data, size_t bytes) {
    const char *name = name_of(fd);
    if (!name) return REAL(write)(fd, data, bytes);
    WRITE(bytes, REAL(write)(fd, data, part));
}

ssize_t writev(int fd, const struct iovec *pieces, int length) {
    const char *name = name_of(fd);
    if (!name) return REAL(writev)(fd, pieces, length);
    /* A short write of the first piece alone is as good as one of all. */
    WRITE(pieces[0].iov_len, REAL(write)(fd, pieces[0].iov_base, part));
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) {
    const char *name = name_of(fd);
    if (!name) return REAL(pwrite64)(fd, data, bytes, offset);
    WRITE(bytes, REAL(pwrite64)(fd, data, part, offset));
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t bytes, unsigned flags) {
    const char *name = name_of(out);
    if (!name) return REAL(copy_file_range)(in, from, out, to, bytes, flags);
    WRITE(bytes, REAL(copy_file_range)(in, from, out, to, part, flags));
}

int ftruncate64(int fd, off64_t size) {
    const char *name = name_of(fd);
    if (!name) return REAL(ftruncate64)(fd, size);
    CALL("ftruncate", name, REAL(ftruncate64)(fd, size));
}

int fallocate64(int fd, int mode, off64_t from, off64_t size) {
    const char *name = name_of(fd);
    if (!name) return REAL(fallocate64)(fd, mode, from, size);
    CALL("fallocate", name, REAL(fallocate64)(fd, mode, from, size));
}

int fallocate(int fd, int mode, off_t from, off_t size) { return fallocate64(fd, mode, from, size); }

int sync_file_range(int fd, off64_t from, off64_t bytes, unsigned flags) {
    const char *name = early ? name_of(fd) : NULL;
    if (!name) return REAL(sync_file_range)(fd, from, bytes, flags);
    CALL("sync_file_range", name, REAL(sync_file_range)(fd, from, bytes, flags));
}

int fsync(int fd) {
    const char *name = name_of(fd);
    if (!name) return REAL(fsync)(fd);
    CALL("fsync", name, 0);
}

int fdatasync(int fd) {
    const char *name = name_of(fd);
    if (!name) return REAL(fdatasync)(fd);
    CALL("fsync", name, 0);
}

int rename(const char *from, const char *to) {
    const char *name = inside(to);
    if (!name) return REAL(rename)(from, to);
    CALL("rename", name, REAL(rename)(from, to));
}

int renameat(int a, const char *from, int b, const char *to) {
    const char *name = inside(to);
    if (!name) return REAL(renameat)(a, from, b, to);
    CALL("rename", name, REAL(renameat)(a, from, b, to));
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    const char *name = inside(to);
    if (!name) return REAL(renameat2)(a, from, b, to, flags);
    CALL("rename", name, REAL(renameat2)(a, from, b, to, flags));
}

int link(const char *from, const char *to) {
    const char *name = inside(to);
    if (!name) return REAL(link)(from, to);
    CALL("link", name, REAL(link)(from, to));
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    const char *name = inside(to);
    if (!name) return REAL(linkat)(a, from, b, to, flags);
    CALL("link", name, REAL(linkat)(a, from, b, to, flags));
}

int unlink(const char *path) {
    const char *name = inside(path);
    if (!name) return REAL(unlink)(path);
    CALL("unlink", name, REAL(unlink)(path));
}

int unlinkat(int dir, const char *path, int flags) {
    const char *name = inside(path);
    if (!name) return REAL(unlinkat)(dir, path, flags);
    CALL("unlink", name, REAL(unlinkat)(dir, path, flags));
}

int chmod(const char *path, mode_t mode) {
    const char *name = inside(path);
    if (!name) return REAL(chmod)(path, mode);
    CALL("chmod", name, REAL(chmod)(path, mode));
}

int fchmod(int fd, mode_t mode) {
    const char *name = name_of(fd);
    if (!name) return REAL(fchmod)(fd, mode);
    CALL("chmod", name, REAL(fchmod)(fd, mode));
}

int statx(int dir, const char *restrict path, int flags, unsigned mask, struct statx *restrict into) {
    /* Of the folder itself and by descriptor it is not part of the writing. The path may be absent, whatever glibc says. */
    const char *volatile given = path;
    const char *asked = given, *name = asked && *asked ? inside(asked) : NULL;
    if (!name || name[0] == '/') return REAL(statx)(dir, path, flags, mask, into);
    CALL("stat", name, REAL(statx)(dir, path, flags, mask, into));
}

ssize_t readlink(const char *restrict path, char *restrict into, size_t bytes) {
    const char *name = inside(path);
    if (!name || name[0] == '/') return REAL(readlink)(path, into, bytes);
    CALL("readlink", name, REAL(readlink)(path, into, bytes));
}
