/* Makes calls on files of a database fail, or kills the process at one of them, for the tests of what happens then.
 *
 * Loaded by LD_PRELOAD. While the file named by FAULT_FILE exists, it says which calls: "write" or "sync" of the database,
 * its WAL and its journal, or "index", which is every call on the image of its index; then the errno, 0 to be killed; then
 * how many such calls still succeed. From the first failure on all of them fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int seen;

/* What a call on a file is called in the fault file, if it can be made to fail. */
static const char *name_of(const char *path, const char *call) {
    size_t len = strlen(path);
    if (strstr(path, ".db.index")) return "index";
    if (len >= 3 && strcmp(path + len - 3, ".db") == 0) return call;
    if (strstr(path, ".db-wal") || strstr(path, ".db-journal")) return call;
    return NULL;
}

static int fails(const char *path, const char *call) {
    const char *faults = getenv("FAULT_FILE"), *name = name_of(path, call);
    FILE *file = faults && name ? fopen(faults, "r") : NULL;
    if (!file) return 0;
    char which[16];
    int code, spared;
    int found = fscanf(file, "%15s %d %d", which, &code, &spared);
    fclose(file);
    if (found != 3 || strcmp(which, name) != 0 || atomic_fetch_add(&seen, 1) < spared) return 0;
    if (code == 0) raise(SIGKILL);
    errno = code;
    return 1;
}

static int fd_fails(int fd, const char *call) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return 0;
    path[len] = 0;
    return fails(path, call);
}

#define REAL(name) ((typeof(name) *)dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t len) {
    return fd_fails(fd, "write") ? -1 : REAL(write)(fd, bytes, len);
}
ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) {
    return fd_fails(fd, "write") ? -1 : REAL(pwrite)(fd, bytes, len, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    return fd_fails(fd, "write") ? -1 : REAL(pwrite64)(fd, bytes, len, at);
}
int fsync(int fd) { return fd_fails(fd, "sync") ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fd_fails(fd, "sync") ? -1 : REAL(fdatasync)(fd); }
int sync_file_range(int fd, off64_t from, off64_t len, unsigned flags) {
    return fd_fails(fd, "sync") ? -1 : REAL(sync_file_range)(fd, from, len, flags);
}
int rename(const char *from, const char *to) { return fails(to, "rename") ? -1 : REAL(rename)(from, to); }
