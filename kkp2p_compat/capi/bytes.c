/*
 * The descriptors of channels: read, written and closed by the program itself.
 *
 * A *raw* one is a TCP connection to a relay, and the program has the only copy.  A mere close would
 * lose what was written if something is unread, or comes in later (the kernel then sends a reset).
 * So its companion gets it back, and closes it once all has arrived, unless the peer's end has been
 * read: then the kernel sees to the rest.  All others are ends of socket pairs.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_MESSAGE_BYTES 65536 /* of a UDP channel */
#define MIN_HELD 64
#define STATUS_BYTES 2048 /* what precedes FDSize in /proc/self/status is far less */

/* A channel, in the place of its descriptor; engine NULL: none of this process. */
struct held {
    kkp2p_engine_t *engine;
    uint32_t channel_id;
    bool is_raw, is_given; /* a raw one that its companion has a copy of */
    dev_t device; /* which socket: the program may have closed the number itself */
    ino_t inode;
};

static struct held *table; /* with kk_lock held */
static int table_size;

static bool is_it(const struct held *held, int fd) {
    struct stat status;

    return held->engine != NULL && fstat(fd, &status) == 0 && status.st_dev == held->device
           && status.st_ino == held->inode;
}

static int option_of(int fd, int name) {
    int value = -1;
    socklen_t length = sizeof(value);

    return getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : -1;
}

static int hold(kkp2p_engine_t *engine, uint32_t channel_id, int fd) {
    struct held held = {engine, channel_id, option_of(fd, SO_DOMAIN) != AF_UNIX, false, 0, 0};
    struct stat status;
    int wanted = MIN_HELD;

    if (fstat(fd, &status) < 0)
        return KKP2P_ERROR_SYSTEM_INTERNAL;
    held.device = status.st_dev;
    held.inode = status.st_ino;
    while (wanted <= fd)
        wanted *= 2;
    pthread_mutex_lock(&kk_lock);
    if (wanted > table_size) {
        struct held *grown = realloc(table, (size_t)wanted * sizeof(*table));
        if (grown == NULL) {
            pthread_mutex_unlock(&kk_lock);
            return KKP2P_ERROR_OUT_OF_MEMORY;
        }
        memset(grown + table_size, 0, (size_t)(wanted - table_size) * sizeof(*table));
        table = grown;
        table_size = wanted;
    }
    table[fd] = held;
    pthread_mutex_unlock(&kk_lock);
    return 0;
}

void kk_disown(kkp2p_engine_t *engine) {
    for (int fd = 0; fd < table_size; fd++)
        if (engine == NULL || table[fd].engine == engine)
            table[fd].engine = NULL;
}

int kk_copy_raw(kkp2p_engine_t *engine, uint32_t channel_id) {
    int copy = -1;

    pthread_mutex_lock(&kk_lock);
    for (int fd = 0; fd < table_size; fd++) {
        struct held *held = &table[fd];
        if (held->engine == engine && held->channel_id == channel_id) {
            if (held->is_raw && !held->is_given && is_it(held, fd))
                copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
            if (copy >= 0)
                held->is_given = true;
            break;
        }
    }
    pthread_mutex_unlock(&kk_lock);
    return copy;
}

int kk_fill_channel(
    kkp2p_engine_t *engine, kkp2p_channel_t *channel, const struct call_data *call) {
    const struct answer *answer = &call->answer;
    int fd = call->fds[0], failed;

    channel->fd = fd;
    if (fd < 0)
        return kk_fail(KKP2P_ERROR_SOCKET_FD_OVERFLOW);
    failed = hold(engine, answer->channel_id, fd);
    if (failed) {
        close(fd);
        channel->fd = -1;
        return kk_fail(failed);
    }
    memcpy(channel->peer_id, answer->peer_id, sizeof(channel->peer_id));
    channel->peer_id[sizeof(channel->peer_id) - 1] = '\0';
    channel->channel_type = answer->channel_type;
    channel->transmit_mode = answer->transmit_mode;
    channel->encrypt_data = answer->encrypt_data;
    channel->channel_id = answer->channel_id;
    channel->is_ipv6_p2p = answer->is_ipv6_p2p;
    channel->connect_desc = answer->connect_desc;
    return answer->result;
}

int64_t kk_now_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool takes_messages(int fd) { return option_of(fd, SO_TYPE) == SOCK_SEQPACKET; }

/* Whether a recv of nothing was the end, and not an empty message. */
static bool at_end(int fd) {
    struct pollfd state = {fd, POLLRDHUP, 0};
    char byte;

    return recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0 && poll(&state, 1, 0) > 0;
}

/* Until fd is ready or it is too late; false: it is too late. */
static bool wait_for(int fd, short events, int64_t deadline) {
    struct pollfd state = {fd, events, 0};
    int64_t left = deadline - kk_now_ms();

    return left > 0 && (poll(&state, 1, (int)left) != 0 || kk_now_ms() < deadline);
}

static int check_bytes(const void *buff, int length, int timeout) {
    return buff == NULL || length < 1 || timeout < 0 ? KKP2P_ERROR_PARAMETER : 0;
}

int kkp2p_read(int fd, char *buff, int length, int timeout) {
    int64_t deadline = 0;
    ssize_t count;

    if (check_bytes(buff, length, timeout))
        return kk_fail(KKP2P_ERROR_PARAMETER);
    for (;;) {
        count = recv(fd, buff, (size_t)length, MSG_DONTWAIT);
        if (count > 0) {
            kk_succeed();
            return (int)count;
        }
        if (count == 0 && (!takes_messages(fd) || at_end(fd)))
            return kk_fail(KKP2P_ERROR);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
            return kk_fail(KKP2P_ERROR);
        deadline = deadline ? deadline : kk_now_ms() + timeout;
        if (!wait_for(fd, POLLIN, deadline)) {
            kk_succeed();
            return 0;
        }
    }
}

int kkp2p_write(int fd, const char *buff, int length, int timeout) {
    int64_t deadline = 0;
    ssize_t count;

    if (check_bytes(buff, length, timeout)
        || (length > MAX_MESSAGE_BYTES && takes_messages(fd)))
        return kk_fail(KKP2P_ERROR_PARAMETER);
    for (;;) {
        count = send(fd, buff, (size_t)length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count >= 0) {
            kk_succeed();
            return (int)count;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return kk_fail(KKP2P_ERROR);
        deadline = deadline ? deadline : kk_now_ms() + timeout;
        if (!wait_for(fd, POLLOUT, deadline)) {
            kk_succeed();
            return 0;
        }
    }
}

/* Whether a mere close loses nothing: a TCP connection on which nothing more can come in. */
static bool needs_no_linger(int fd) {
    struct tcp_info info;
    socklen_t length = sizeof(info);
    char byte;

    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
        return false;
    if (info.tcpi_state == TCP_CLOSE)
        return true;
    return (info.tcpi_state == TCP_CLOSE_WAIT || info.tcpi_state == TCP_LAST_ACK)
           && recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

/*
 * Above all descriptors of this process; 0: unknown.  With no number left to ask with, all are below
 * the limit, unless the program has lowered it since.
 */
static int end_of_numbers(void) {
    static const char name[] = "\nFDSize:";
    char text[STATUS_BYTES];
    struct rlimit limit;
    int status = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    const char *found;
    ssize_t count;

    if (status < 0)
        return errno == EMFILE && getrlimit(RLIMIT_NOFILE, &limit) == 0 ? (int)limit.rlim_cur : 0;
    count = read(status, text, sizeof(text) - 1);
    close(status);
    text[count > 0 ? count : 0] = '\0';
    found = strstr(text, name);
    return found == NULL ? 0 : atoi(found + sizeof(name) - 1);
}

/*
 * As a close would, if it were of the last copy: while there is another, epoll(7) goes on to report
 * a descriptor that is closed here.  To try every number takes a tenth of the time that
 * it takes to read in /proc/self/fd what each of them is, and no number for the folder.
 * By the kernel's call: a sanitizer would take it for a use of other threads' descriptors.
 */
static void leave_epolls(int fd) {
    int end = end_of_numbers();
    struct epoll_event unused;

    for (int number = 0; number < end; number++)
        syscall(SYS_epoll_ctl, number, EPOLL_CTL_DEL, fd, &unused);
}

/* What a close by itself would not do, as others may have copies of the descriptor. */
static void end_channel(kkp2p_engine_t *engine, const struct held *held, int fd) {
    leave_epolls(fd);
    if (!held->is_raw || (!held->is_given && needs_no_linger(fd)))
        shutdown(fd, SHUT_RDWR); /* for a thread that waits, and a child */
    else if (!held->is_given)
        kk_send_only(engine->control, CALL_LINGER, 0, fd);
}

void kkp2p_close_fd(int fd) {
    NOT_CANCELLED;
    kkp2p_engine_t *engine = NULL;
    struct held held = {0};

    if (fd < 0) {
        kk_fail(KKP2P_ERROR);
        return;
    }
    pthread_mutex_lock(&kk_lock);
    if (fd < table_size) {
        held = table[fd];
        if (is_it(&held, fd))
            engine = held.engine;
        table[fd].engine = NULL;
    }
    pthread_mutex_unlock(&kk_lock);
    engine = engine == NULL ? NULL : kk_use(engine);
    if (engine != NULL) {
        end_channel(engine, &held, fd);
        kk_release(engine);
    }
    if (close(fd) < 0)
        kk_fail(KKP2P_ERROR);
    else
        kk_succeed();
}
