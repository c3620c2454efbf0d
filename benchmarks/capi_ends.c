/*
 * A caller by the C library: what capi_ends.py does by the Python API, step by step.
 *
 *     KKP2P_LOGIN=HOST:PORT ./caller PEER_ID MODE TRIPS MEGABYTES
 *
 * It prints a line of JSON, and then waits for the end of its input.
 */
#define _POSIX_C_SOURCE 200809L
#include <kkp2p_sdk.h>

#include <stdio.h>
#include <time.h>

#define PATIENCE_MS 60000
#define CHUNK 65536

static double now_s(void) {
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void need(int ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, kkp2p_error_text());
        exit(1);
    }
}

static void write_all(int fd, const char *data, int length) {
    int taken;

    for (int done = 0; done < length; done += taken) {
        taken = kkp2p_write(fd, (char *)data + done, length - done, PATIENCE_MS);
        need(taken > 0, "write");
    }
}

static int by_size(const void *one, const void *other) {
    double left = *(const double *)one, right = *(const double *)other;

    return (left > right) - (left < right);
}

int main(int argc, char **argv) {
    kkp2p_engine_conf_t conf = {0};
    kkp2p_connect_ctx_t ctx = {0};
    kkp2p_channel_t channel;
    static char chunk[CHUNK];
    int trips, megabytes;
    double begun, init_s, connect_s, bulk_s, *took;
    kkp2p_engine_t *engine;

    if (argc != 5)
        return 2;
    trips = atoi(argv[3]);
    megabytes = atoi(argv[4]);
    conf.login_domain = (char *)"127.0.0.1";
    conf.login_port = 3080;
    conf.disable_upnp = 1;
    conf.log_path = (char *)".";
    begun = now_s();
    engine = kkp2p_engine_init(&conf, PATIENCE_MS);
    need(engine != NULL, "engine_init");
    init_s = now_s() - begun;
    strncpy(ctx.peer_id, argv[1], sizeof(ctx.peer_id) - 1);
    ctx.connect_mode = (char)atoi(argv[2]);
    ctx.timeout = PATIENCE_MS;
    begun = now_s();
    need(kkp2p_connect(engine, &ctx, &channel) == 0, "connect");
    connect_s = now_s() - begun;
    took = malloc((size_t)trips * sizeof(*took));
    need(took != NULL, "malloc");
    for (int trip = 0; trip < trips; trip++) {
        begun = now_s();
        write_all(channel.fd, "e", 1);
        need(kkp2p_read(channel.fd, chunk, 1, PATIENCE_MS) == 1, "read");
        took[trip] = now_s() - begun;
    }
    qsort(took, (size_t)trips, sizeof(*took), by_size);
    memset(chunk, 's', sizeof(chunk));
    begun = now_s();
    for (int number = 0; number < megabytes * 16; number++)
        write_all(channel.fd, chunk, CHUNK);
    write_all(channel.fd, "e", 1);
    need(kkp2p_read(channel.fd, chunk, 1, PATIENCE_MS) == 1, "read");
    bulk_s = now_s() - begun;
    printf("{\"engine_init, ms\": %.3f, \"connect, ms\": %.3f, \"one byte there and back, p50 us\": "
           "%.2f, \"one byte there and back, p99 us\": %.2f, \"one channel, MB/s\": %.2f}\n",
        1e3 * init_s, 1e3 * connect_s, 1e6 * took[trips / 2], 1e6 * took[trips * 99 / 100],
        megabytes * 1.048576 / bulk_s);
    fflush(stdout);
    getchar();
    free(took);
    kkp2p_close_fd(channel.fd);
    kkp2p_close_channel(engine, channel.channel_id);
    kkp2p_engine_destroy(engine);
    return 0;
}
