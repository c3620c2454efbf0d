/*
 * Starts a companion: the process that has an engine, as `python -I -m kkp2p_compat.capi`.
 *
 * It is a grandchild without a parent of its own, so that the program has no child more, and gets
 * no SIGCHLD.  Both steps share the program's memory while its thread waits (CLONE_VFORK), as
 * posix_spawn does, so nothing between them may do more than system calls: locks may be held by
 * other threads, and signal handlers are the program's.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef KKP2P_PYTHON
#error "KKP2P_PYTHON is the path of the Python that has kkp2p_compat, as a string"
#endif

#define TEXT_OF(number) #number
#define VERSION_TEXT(number) TEXT_OF(number)

#define STACK_BYTES 65536
#define REPORT_BYTES 4096

/* The descriptors of a companion; 0 and 1 are /dev/null. */
#define REPORTS 2  /* a file in memory: why it could not start */
#define CONTROL 3
#define ERRORS 4   /* the program's standard error, for when it has started; or /dev/null */
#define FIRST_UNUSED 5
#define FIRST_OWN 8 /* in the program: above all of these */

#define KERNEL_SIGNALS 64
#define SIGNAL_SET_BYTES (KERNEL_SIGNALS / 8)

#ifdef __SANITIZE_THREAD__
/* The sanitizer's own takes the new process for a fork, which has a memory of its own. */
extern int __clone(int (*function)(void *), void *stack, int flags, void *argument, ...);
#define clone __clone
#endif

extern char **environ;

struct start {
    char *stacks;
    char *const *arguments;
    int control, reports;
    int error; /* errno of what failed */
};

static void set_signal(int number, uintptr_t action) {
    uintptr_t kernel_action[8] = {action}; /* flags, restorer and mask behind it are 0 */
    syscall(SYS_rt_sigaction, number, kernel_action, NULL, SIGNAL_SET_BYTES);
}

__attribute__((no_sanitize("address", "thread", "undefined")))
static int run_companion(void *argument) {
    struct start *start = argument;
    static const uint64_t none = 0;

    for (int number = 1; number <= KERNEL_SIGNALS; number++)
        set_signal(number, (uintptr_t)SIG_DFL);
    /* These are the program's: the companion ends when the program has. */
    set_signal(SIGHUP, (uintptr_t)SIG_IGN);
    set_signal(SIGINT, (uintptr_t)SIG_IGN);
    set_signal(SIGTERM, (uintptr_t)SIG_IGN);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, SIGNAL_SET_BYTES);
    syscall(SYS_setsid);
    syscall(SYS_close, 0);
    syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR); /* becomes 0 */
    syscall(SYS_dup3, 0, 1, 0);
    if (syscall(SYS_dup3, 2, ERRORS, 0) < 0)
        syscall(SYS_dup3, 0, ERRORS, 0);
    if (syscall(SYS_dup3, start->reports, REPORTS, 0) < 0
        || syscall(SYS_dup3, start->control, CONTROL, 0) < 0) {
        start->error = errno;
        syscall(SYS_exit_group, 1);
    }
#ifdef SYS_close_range /* glibc 2.33; without it the companion does the same, a moment later */
    syscall(SYS_close_range, FIRST_UNUSED, ~0U, 0);
#endif
    syscall(SYS_execve, start->arguments[0], start->arguments, environ);
    start->error = errno;
    syscall(SYS_exit_group, 1);
    return 1;
}

__attribute__((no_sanitize("address", "thread", "undefined")))
static int run_between(void *argument) {
    struct start *start = argument;

    if (clone(run_companion, start->stacks + 2 * STACK_BYTES, CLONE_VM | CLONE_VFORK | SIGCHLD,
            start) < 0)
        start->error = errno;
    syscall(SYS_exit_group, 0);
    return 0;
}

/* Both steps; 0, or the errno of what failed. */
static int spawn(struct start *start) {
    uint64_t all = UINT64_MAX, before;
    pid_t child;

    start->stacks = mmap(NULL, 2 * STACK_BYTES, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (start->stacks == MAP_FAILED)
        return errno;
    /* By the kernel's call: libc would leave out its own signals. */
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, SIGNAL_SET_BYTES);
    /* No signal for its end: so it is no child that the program could wait for. */
    child = clone(run_between, start->stacks + STACK_BYTES, CLONE_VM | CLONE_VFORK, start);
    if (child < 0)
        start->error = errno;
    else
        while (syscall(SYS_wait4, child, NULL, __WALL, NULL) < 0 && errno == EINTR)
            ;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, SIGNAL_SET_BYTES);
    munmap(start->stacks, 2 * STACK_BYTES);
    return start->error;
}

int kk_private(int fd) {
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_OWN);

    close(fd);
    return moved;
}

static int make_pair(int pair[2]) {
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -1;
    pair[0] = kk_private(pair[0]);
    pair[1] = kk_private(pair[1]);
    if (pair[0] >= 0 && pair[1] >= 0)
        return 0;
    if (pair[0] >= 0)
        close(pair[0]);
    if (pair[1] >= 0)
        close(pair[1]);
    return -1;
}

static int fail_by(int error) {
    bool none_left = error == EMFILE || error == ENFILE || error == EINVAL; /* of FIRST_OWN */

    return kk_fail(none_left ? KKP2P_ERROR_SOCKET_FD_OVERFLOW : KKP2P_ERROR_SYSTEM_INTERNAL);
}

/* The last line that the companion has said, into ``line``; an empty one if it has said nothing. */
static void last_line(int reports, char *line, size_t size) {
    off_t end = lseek(reports, 0, SEEK_END);
    off_t from = end > (off_t)size - 1 ? end - (off_t)size + 1 : 0;
    ssize_t count = pread(reports, line, size - 1, from);
    char *start;

    while (count > 0 && (line[count - 1] == '\n' || line[count - 1] == '\0'))
        count--;
    line[count > 0 ? count : 0] = '\0';
    start = strrchr(line, '\n');
    if (start != NULL)
        memmove(line, start + 1, strlen(start));
}

/* Whoever builds the program has to act, so it is told where it is sure to be seen, too. */
static int fail_to_start(const char *python, const char *why) {
    char text[REPORT_BYTES + 256];

    snprintf(text, sizeof(text), "%.200s -I -m kkp2p_compat.capi: %s", python, why);
    dprintf(STDERR_FILENO, "kkp2p: no engine: %s\n", text);
    return kk_fail_because(KKP2P_ERROR_SYSTEM_INTERNAL, text);
}

/* Waits for the companion's first word, which is its version. */
static int greet(int control, int reports, const char *python) {
    uint32_t version = 0;
    char why[REPORT_BYTES];
    ssize_t count;

    do
        count = recv(control, &version, sizeof(version), 0);
    while (count < 0 && errno == EINTR);
    if (count == (ssize_t)sizeof(version) && version == WIRE_VERSION)
        return 0;
    if (count > 0) {
        snprintf(why, sizeof(why), "it is of another version than this library (%u, not %u); "
            "build the library again", (unsigned)version, (unsigned)WIRE_VERSION);
    } else {
        last_line(reports, why, sizeof(why));
        if (why[0] == '\0')
            snprintf(why, sizeof(why), "it has ended without a word");
    }
    return fail_to_start(python, why);
}

int kk_start_companion(int *control) {
    const char *chosen = secure_getenv("KKP2P_PYTHON");
    const char *python = chosen != NULL && chosen[0] != '\0' ? chosen : KKP2P_PYTHON;
    char *const arguments[] = {
        (char *)python, (char *)"-I", (char *)"-m", (char *)"kkp2p_compat.capi",
        (char *)VERSION_TEXT(WIRE_VERSION), NULL};
    struct start start = {NULL, arguments, -1, -1, 0};
    int pair[2], error, result;

    start.reports = memfd_create("kkp2p", MFD_CLOEXEC);
    if (start.reports >= 0)
        start.reports = kk_private(start.reports);
    if (start.reports < 0)
        return fail_by(errno);
    /* A fork meanwhile would leave the child a copy of the companion's end: we wait for its end. */
    pthread_mutex_lock(&kk_lock);
    if (make_pair(pair) < 0) {
        error = errno;
        pthread_mutex_unlock(&kk_lock);
        close(start.reports);
        return fail_by(error);
    }
    *control = pair[0];
    start.control = pair[1];
    error = spawn(&start);
    close(pair[1]);
    pthread_mutex_unlock(&kk_lock);
    if (error != 0)
        result = fail_to_start(python, strerror(error));
    else
        result = greet(*control, start.reports, python);
    close(start.reports);
    return result;
}
