/* Preloaded into a program under test: while the file that DISK_FAULT names begins with an s, its disk stands still; with an f, it fails
 * to keep what was written. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static int fails(void) {
    for (;;) {
        const char *path = getenv("DISK_FAULT");
        char fault = '-';
        int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (file >= 0) {
            if (read(file, &fault, 1) != 1) fault = '-';
            close(file);
        }
        if (fault == 'f') {
            errno = EIO;
            return 1;
        }
        if (fault != 's') return 0;
        usleep(5000);
    }
}

int fdatasync(int file) {
    static int (*next)(int);
    if (!next) next = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return fails() ? -1 : next(file);
}

int fsync(int file) {
    static int (*next)(int);
    if (!next) next = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return fails() ? -1 : next(file);
}
