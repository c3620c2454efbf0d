/*
 * Sends back what its callers send: a thread for each.
 *
 *     cc echo_peer.c $(kkp2p capi --cflags --libs) -pthread -o echo_peer
 *     KKP2P_LOGIN=HOST[:PORT] ./echo_peer PEER_ID SECRET
 *
 * Ctrl-C ends it.
 */
#define _POSIX_C_SOURCE 200809L
#include <kkp2p_sdk.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#define IDLE_MS 60000 /* a caller that is silent for so long is left */

static volatile sig_atomic_t run_flag = 1;
static kkp2p_engine_t *engine;

static void stop(int number) {
    (void)number;
    run_flag = 0;
}

static int write_all(int fd, const char *data, int length) {
    int written;

    for (int done = 0; done < length; done += written) {
        written = kkp2p_write(fd, data + done, length - done, IDLE_MS);
        if (written <= 0) /* 0: the caller does not read */
            return -1;
    }
    return 0;
}

static void *serve(void *argument) {
    kkp2p_channel_t *channel = argument;
    char buff[16384];
    int length;

    while ((length = kkp2p_read(channel->fd, buff, sizeof(buff), IDLE_MS)) > 0)
        if (write_all(channel->fd, buff, length) < 0)
            break;
    kkp2p_close_fd(channel->fd);
    kkp2p_close_channel(engine, channel->channel_id);
    free(channel);
    return NULL;
}

static int accept_one(void) {
    kkp2p_channel_t *channel = calloc(1, sizeof(*channel));
    pthread_t thread;
    int ret = channel == NULL ? KKP2P_ERROR_OUT_OF_MEMORY : kkp2p_accept(engine, 500, channel);

    if (ret <= 0) {
        free(channel);
        return ret;
    }
    if (pthread_create(&thread, NULL, serve, channel) == 0) {
        pthread_detach(thread);
    } else {
        kkp2p_close_fd(channel->fd);
        kkp2p_close_channel(engine, channel->channel_id);
        free(channel);
    }
    return ret;
}

int main(int argc, char **argv) {
    kkp2p_engine_conf_t conf = {.login_domain = "127.0.0.1", .login_port = 3080};
    struct sigaction action = {.sa_handler = stop};
    int ret;

    if (argc != 3) {
        fprintf(stderr, "usage: %s PEER_ID SECRET\n", argv[0]);
        return 2;
    }
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
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
        while (run_flag && (ret = accept_one()) >= 0)
            ;
        if (ret < 0)
            fprintf(stderr, "kkp2p_accept error,ret:%d.\n", ret);
    }
    kkp2p_engine_destroy(engine);
    return ret < 0;
}
