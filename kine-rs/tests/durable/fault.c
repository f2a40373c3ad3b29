/* Makes writes or syncs of a database fail, for the tests of what the server does then.
 *
 * Loaded by LD_PRELOAD. While the file named by FAULT_FILE exists, it says which calls on files of the database fail:
 * "write" or "sync", the errno, and how many such calls still succeed. From the first failure on all of them fail. In place
 * of an errno, -9 kills the process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int seen;

static int is_database(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 4) return 0;
    path[len] = 0;
    return strcmp(path + len - 3, ".db") == 0 || strstr(path, ".db-wal") != NULL || strstr(path, ".db-journal") != NULL;
}

static int fails(int fd, const char *what) {
    const char *name = getenv("FAULT_FILE");
    FILE *file = name && is_database(fd) ? fopen(name, "r") : NULL;
    if (!file) return 0;
    char which[16];
    int code, spared;
    int found = fscanf(file, "%15s %d %d", which, &code, &spared);
    fclose(file);
    if (found != 3 || strcmp(which, what) != 0 || atomic_fetch_add(&seen, 1) < spared) return 0;
    if (code < 0) raise(-code);
    errno = code;
    return 1;
}

#define REAL(name) ((typeof(name) *)dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t len) {
    return fails(fd, "write") ? -1 : REAL(write)(fd, bytes, len);
}
ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) {
    return fails(fd, "write") ? -1 : REAL(pwrite)(fd, bytes, len, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    return fails(fd, "write") ? -1 : REAL(pwrite64)(fd, bytes, len, at);
}
int fsync(int fd) { return fails(fd, "sync") ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails(fd, "sync") ? -1 : REAL(fdatasync)(fd); }
