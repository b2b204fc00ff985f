"""A clock of the day that a test moves for the processes that it starts; the clock of the machine stays as it is."""

import mmap
import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *ahead_s;  /* Shared with the test. */

__attribute__((constructor)) static void open_clock(void) {
    int file = open(getenv("MOVED_CLOCK"), O_RDONLY);
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) ahead_s = page;
    if (file >= 0) close(file);
}

static long ahead(void) { return ahead_s ? *ahead_s : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed) now->tv_sec += ahead();
    return failed;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

/* Deadlines are on the clock of the caller; those of the monotonic clock, which counts from the boot, are small. */
static const struct timespec *deadline(const struct timespec *given, struct timespec *moved) {
    if (given->tv_sec < 1000000000) return given;
    *moved = *given;
    moved->tv_sec -= ahead();
    return moved;
}

int pthread_cond_timedwait(pthread_cond_t *restrict c, pthread_mutex_t *restrict m, const struct timespec *restrict t) {
    int (*wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *) =
        dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec moved;
    return wait(c, m, deadline(t, &moved));
}

int sem_timedwait(sem_t *restrict s, const struct timespec *restrict t) {
    int (*wait)(sem_t *, const struct timespec *) = dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec moved;
    return wait(s, deadline(t, &moved));
}
"""


class MovedClock:
    """The clock of the day of all processes with `environment`."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: An existing folder for its files.
        """
        if shutil.which("gcc") is None:
            pytest.skip("no C compiler (apt-get install gcc)")
        source, library, self._file = folder / "clock.c", folder / "clock.so", folder / "ahead"
        source.write_text(_SOURCE)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(self._file)}
        self._file.write_bytes(bytes(8))

    def set_ahead(self, seconds: int) -> None:
        """Set the clock this many seconds ahead of that of the machine, from now on."""
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as page:
            page[:] = seconds.to_bytes(8, "little", signed=True)
