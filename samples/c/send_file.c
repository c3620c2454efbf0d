/*
 * Sends a file to a peer that runs samples/recv_file.py.
 *
 *     cc send_file.c $(kkp2p capi --cflags --libs) -o send_file
 *     KKP2P_LOGIN=HOST[:PORT] ./send_file PEER_ID FILE [CONNECT_MODE]
 *
 * Exit status 0: the file is on the peer's disk.  Protocol: its size (8 bytes, big-endian), the
 * length of its name (2), the name, the file; the answer is ACK (it is on the disk) or NAK.
 */
#define _POSIX_C_SOURCE 200809L
#include <kkp2p_sdk.h>

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_DESC 3 /* connect_desc, as samples/recv_file.py has it */
#define ACK 0x06    /* ASCII's */
#define WAIT_MS 10000
#define ANSWER_MS 60000 /* the peer writes it to its disk */
#define MOST_NAME_BYTES 240

static int failed(const char *why) {
    fprintf(stderr, "not sent: %s.\n", why);
    return -1;
}

static int write_all(int fd, const char *data, int length) {
    int written;

    for (int done = 0; done < length; done += written) {
        written = kkp2p_write(fd, data + done, length - done, WAIT_MS);
        if (written <= 0)
            return failed(written < 0 ? "the connection broke" : "the peer has stopped reading");
    }
    return 0;
}

static int send_header(int fd, uint64_t size, const char *name) {
    char header[10 + MOST_NAME_BYTES];
    size_t length = strlen(name);

    if (length > MOST_NAME_BYTES)
        return failed("its name is too long");
    for (int i = 0; i < 8; i++)
        header[i] = (char)(size >> (56 - 8 * i));
    header[8] = (char)(length >> 8);
    header[9] = (char)length;
    memcpy(header + 10, name, length);
    return write_all(fd, header, 10 + (int)length);
}

static int send_rest(int fd, int file, uint64_t size) {
    char chunk[65536], answer = 0;
    ssize_t count;

    for (; size > 0; size -= (uint64_t)count) {
        count = read(file, chunk, size < sizeof(chunk) ? (size_t)size : sizeof(chunk));
        if (count <= 0)
            return failed("it was changed while it was being sent");
        if (write_all(fd, chunk, (int)count) < 0)
            return -1;
    }
    if (kkp2p_read(fd, &answer, 1, ANSWER_MS) <= 0)
        return failed("the peer did not say whether it has the file");
    return answer == ACK ? 0 : failed("the peer refused it");
}

static int send_to(kkp2p_engine_t *engine, const char *peer_id, int mode, const char *path) {
    kkp2p_connect_ctx_t ctx = {
        .connect_mode = mode, .timeout = WAIT_MS, .connect_desc = FILE_DESC};
    const char *slash = strrchr(path, '/');
    kkp2p_channel_t channel;
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC), ret;

    if (file < 0 || fstat(file, &status) < 0 || !S_ISREG(status.st_mode))
        return failed("it is no file that can be read");
    strncpy(ctx.peer_id, peer_id, sizeof(ctx.peer_id) - 1);
    ret = kkp2p_connect(engine, &ctx, &channel);
    if (ret < 0) {
        fprintf(stderr, "kkp2p_connect error,ret:%d.\n", ret);
    } else {
        ret = send_header(channel.fd, (uint64_t)status.st_size, slash ? slash + 1 : path);
        if (ret == 0)
            ret = send_rest(channel.fd, file, (uint64_t)status.st_size);
        kkp2p_close_fd(channel.fd);
        kkp2p_close_channel(engine, channel.channel_id);
    }
    close(file);
    if (ret == 0)
        printf("sent %lld bytes, mode is %d.\n", (long long)status.st_size, channel.transmit_mode);
    return ret;
}

int main(int argc, char **argv) {
    kkp2p_engine_conf_t conf = {.login_domain = "127.0.0.1", .login_port = 3080};
    kkp2p_engine_t *engine;
    int ret;

    if (argc != 3 && argc != 4) {
        fprintf(stderr, "usage: %s PEER_ID FILE [CONNECT_MODE]\n", argv[0]);
        return 2;
    }
    engine = kkp2p_engine_init(&conf, 5000);
    if (engine == NULL) {
        fprintf(stderr, "kkp2p_engine_init error,ret:%d.\n", kkp2p_error_no());
        return 1;
    }
    ret = send_to(engine, argv[1], argc == 4 ? atoi(argv[3]) : 0, argv[2]);
    kkp2p_engine_destroy(engine);
    return ret < 0;
}
