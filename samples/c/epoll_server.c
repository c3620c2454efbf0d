/*
 * Sends back what its callers send, all of them in one thread: epoll waits for kkp2p_listen_fd and
 * for every channel's descriptor, which are descriptors like others.
 *
 *     cc epoll_server.c $(kkp2p capi --cflags --libs) -o epoll_server
 *     KKP2P_LOGIN=HOST[:PORT] ./epoll_server PEER_ID SECRET
 *
 * Ctrl-C ends it.
 */
#define _GNU_SOURCE
#include <kkp2p_sdk.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define MOST_EVENTS 64

struct caller {
    kkp2p_channel_t channel;
    char data[16384]; /* that is to be sent back */
    int begin, end;
};

static kkp2p_engine_t *engine;
static int poller;

static int watch(int operation, int fd, uint32_t events, void *owner) {
    struct epoll_event event = {.events = events, .data.ptr = owner};

    return epoll_ctl(poller, operation, fd, &event);
}

static void leave(struct caller *caller) {
    watch(EPOLL_CTL_DEL, caller->channel.fd, 0, NULL);
    kkp2p_close_fd(caller->channel.fd); /* what was written arrives */
    kkp2p_close_channel(engine, caller->channel.channel_id);
    free(caller);
}

/* All who wait, as the descriptor says that there is somebody. */
static int accept_all(void) {
    struct caller *caller;
    int ret;

    for (;;) {
        caller = calloc(1, sizeof(*caller));
        if (caller == NULL)
            return KKP2P_ERROR_OUT_OF_MEMORY;
        ret = kkp2p_accept(engine, 0, &caller->channel);
        if (ret <= 0) {
            free(caller);
            return ret;
        }
        if (watch(EPOLL_CTL_ADD, caller->channel.fd, EPOLLIN, caller) < 0)
            leave(caller);
    }
}

/* 0, or -1 when the caller is to be left. */
static int serve(struct caller *caller) {
    int fd = caller->channel.fd, count;

    if (caller->begin == caller->end) {
        count = kkp2p_read(fd, caller->data, sizeof(caller->data), 0);
        if (count <= 0)
            return count;
        caller->begin = 0;
        caller->end = count;
    }
    count = kkp2p_write(fd, caller->data + caller->begin, caller->end - caller->begin, 0);
    if (count < 0)
        return -1;
    caller->begin += count;
    /* A caller who does not read is waited for; nothing more is taken from him meanwhile. */
    return watch(EPOLL_CTL_MOD, fd, caller->begin < caller->end ? EPOLLOUT : EPOLLIN, caller);
}

/* Until a signal comes; 0, or an error of accept. */
static int loop(int listen_fd, int signal_fd) {
    struct epoll_event events[MOST_EVENTS];
    int count, ret;

    if (watch(EPOLL_CTL_ADD, listen_fd, EPOLLIN, &engine) < 0
        || watch(EPOLL_CTL_ADD, signal_fd, EPOLLIN, &poller) < 0)
        return KKP2P_ERROR;
    for (;;) {
        count = epoll_wait(poller, events, MOST_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            void *owner = events[i].data.ptr;
            if (owner == &poller)
                return 0;
            if (owner == &engine) {
                if ((ret = accept_all()) < 0)
                    return ret;
            } else if (serve(owner) < 0) {
                leave(owner);
            }
        }
    }
}

int main(int argc, char **argv) {
    kkp2p_engine_conf_t conf = {.login_domain = "127.0.0.1", .login_port = 3080};
    sigset_t ends;
    int ret;

    if (argc != 3) {
        fprintf(stderr, "usage: %s PEER_ID SECRET\n", argv[0]);
        return 2;
    }
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    poller = epoll_create1(EPOLL_CLOEXEC);
    engine = kkp2p_engine_init(&conf, 5000);
    if (engine == NULL) {
        fprintf(stderr, "kkp2p_engine_init error,ret:%d.\n", kkp2p_error_no());
        return 1;
    }
    ret = kkp2p_join_net(engine, argv[1], argv[2]);
    if (ret < 0) {
        fprintf(stderr, "kkp2p_join_net error,ret:%d.\n", ret);
    } else {
        printf("echoing as %s.\n", argv[1]);
        fflush(stdout);
        ret = loop(kkp2p_listen_fd(engine), signalfd(-1, &ends, SFD_CLOEXEC));
    }
    kkp2p_engine_destroy(engine);
    return ret < 0;
}
