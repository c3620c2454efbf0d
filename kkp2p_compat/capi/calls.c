/*
 * The calls that the companion answers.
 *
 * A call is one packet with one end of a fresh socket pair, on which the answer comes: so threads
 * need no lock among each other, and when the companion is gone the call under way reads its end.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FDS 2

/* The descriptors of a call under way, which a forked child closes. */
struct answering {
    struct answering *next, **place;
    int ours, theirs;
};

static struct answering *answering;

static void note(struct answering *node) {
    node->next = answering;
    node->place = &answering;
    if (answering != NULL)
        answering->place = &node->next;
    answering = node;
}

static void forget(struct answering *node) {
    *node->place = node->next;
    if (node->next != NULL)
        node->next->place = node->place;
}

void kk_close_answers(void) {
    for (; answering != NULL; answering = answering->next) {
        close(answering->ours);
        if (answering->theirs >= 0)
            close(answering->theirs);
        answering->ours = answering->theirs = -1;
    }
}

void kk_begin(struct call_data *call, enum call number) {
    memset(&call->request, 0, sizeof(call->request));
    memset(&call->answer, 0, sizeof(call->answer));
    call->request.call = (uint32_t)number;
    call->texts[0] = call->texts[1] = NULL;
    call->sent_fd = call->fds[0] = call->fds[1] = -1;
    call->text[0] = '\0';
}

/* 0, or an error. */
static int send_packet(int control, struct call_data *call, int answer_fd) {
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } rights;
    struct iovec parts[1 + TEXTS];
    struct msghdr message;
    struct cmsghdr *header;
    int fds[MAX_FDS], count = 0;

    parts[0].iov_base = &call->request;
    parts[0].iov_len = sizeof(call->request);
    for (int i = 0; i < TEXTS; i++) {
        size_t length = call->texts[i] == NULL ? 0 : strlen(call->texts[i]);
        if (length > MAX_TEXT_BYTES)
            return KKP2P_ERROR_PARAMETER;
        call->request.lengths[i] = call->texts[i] == NULL ? NO_TEXT : (uint32_t)length;
        parts[1 + i].iov_base = (void *)call->texts[i];
        parts[1 + i].iov_len = length;
    }
    if (answer_fd >= 0)
        fds[count++] = answer_fd;
    if (call->sent_fd >= 0)
        fds[count++] = call->sent_fd;
    memset(&message, 0, sizeof(message));
    memset(&rights, 0, sizeof(rights));
    message.msg_iov = parts;
    message.msg_iovlen = 1 + TEXTS;
    if (count > 0) {
        message.msg_control = rights.bytes;
        message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
        header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, (size_t)count * sizeof(int));
    }
    while (sendmsg(control, &message, MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            return errno == ETOOMANYREFS ? KKP2P_ERROR_SOCKET_FD_OVERFLOW : KKP2P_ERROR;
    return 0;
}

ssize_t kk_receive(int fd, struct call_data *call) {
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } rights;
    struct iovec parts[2];
    struct msghdr message;
    struct cmsghdr *header;
    ssize_t count;

    parts[0].iov_base = &call->answer;
    parts[0].iov_len = sizeof(call->answer);
    parts[1].iov_base = call->text;
    parts[1].iov_len = MAX_TEXT_BYTES;
    memset(&message, 0, sizeof(message));
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    message.msg_control = rights.bytes;
    message.msg_controllen = sizeof(rights.bytes);
    call->fds[0] = call->fds[1] = -1;
    do
        count = recvmsg(fd, &message, 0);
    while (count < 0 && errno == EINTR);
    if (count < (ssize_t)sizeof(call->answer))
        return 0;
    call->text[(size_t)count - sizeof(call->answer)] = '\0';
    header = CMSG_FIRSTHDR(&message);
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
        memcpy(call->fds, CMSG_DATA(header), header->cmsg_len - CMSG_LEN(0));
    return count; /* descriptors that this process has no number for are missing */
}

int kk_exchange(int control, struct call_data *call) {
    struct answering node;
    int pair[2], failed;
    ssize_t count = 0;

    pthread_mutex_lock(&kk_lock);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        failed = errno == EMFILE || errno == ENFILE ? KKP2P_ERROR_SOCKET_FD_OVERFLOW
                                                    : KKP2P_ERROR_SYSTEM_INTERNAL;
        pthread_mutex_unlock(&kk_lock);
        return failed;
    }
    node.ours = pair[0];
    node.theirs = pair[1];
    note(&node);
    pthread_mutex_unlock(&kk_lock);
    failed = send_packet(control, call, node.theirs);
    pthread_mutex_lock(&kk_lock);
    close(node.theirs);
    node.theirs = -1;
    pthread_mutex_unlock(&kk_lock);
    if (!failed)
        count = kk_receive(node.ours, call);
    pthread_mutex_lock(&kk_lock);
    forget(&node);
    close(node.ours);
    pthread_mutex_unlock(&kk_lock);
    return failed ? failed : count > 0 ? 0 : KKP2P_ERROR;
}

bool kk_send_only(int control, enum call number, uint32_t channel_id, int fd) {
    struct call_data call;

    kk_begin(&call, number);
    call.request.tag = channel_id;
    call.sent_fd = fd;
    return send_packet(control, &call, -1) == 0;
}

void kk_report(const struct call_data *call) {
    kk_fail_because(call->answer.error, call->answer.error ? call->text : "");
}

int kk_call(kkp2p_engine_t *engine, struct call_data *call) {
    int failed = kk_exchange(engine->control, call);

    if (failed)
        return kk_fail(failed);
    kk_report(call);
    return call->answer.result;
}

/* One call of an engine that may not be usable. */
static int call_engine(kkp2p_engine_t *engine, struct call_data *call) {
    NOT_CANCELLED;
    int result;

    engine = kk_use(engine);
    if (engine == NULL)
        return kk_fail(KKP2P_ERROR);
    result = kk_call(engine, call);
    kk_release(engine);
    return result;
}

void kkp2p_switch_log_level(kkp2p_engine_t *engine, int level) {
    struct call_data call;

    kk_begin(&call, CALL_ENGINE_LEVEL);
    call.request.numbers[0] = level;
    call_engine(engine, &call);
}

int kkp2p_get_domainip(kkp2p_engine_t *engine, char *hosts, int ip_length, int ip_count) {
    struct call_data call;
    int count = 0, result;

    if (hosts == NULL || ip_length < 1 || ip_count < 0)
        return kk_fail(KKP2P_ERROR_PARAMETER);
    kk_begin(&call, CALL_DOMAINIP);
    result = call_engine(engine, &call);
    if (result < 0)
        return result;
    for (char *rest = NULL, *ip = strtok_r(call.text, "\n", &rest); ip != NULL && count < ip_count;
         ip = strtok_r(NULL, "\n", &rest), count++) {
        if (strlen(ip) >= (size_t)ip_length)
            return kk_fail(KKP2P_ERROR_SMALL_BUFF);
        strcpy(hosts + (size_t)count * (size_t)ip_length, ip);
    }
    return count;
}

int kkp2p_join_net(kkp2p_engine_t *engine, const char *peer_id, const char *secret) {
    struct call_data call;

    if (peer_id == NULL || secret == NULL)
        return kk_fail(KKP2P_ERROR_PARAMETER);
    kk_begin(&call, CALL_JOIN_NET);
    call.texts[0] = peer_id;
    call.texts[1] = secret;
    return call_engine(engine, &call);
}

int kkp2p_join_lan(kkp2p_engine_t *engine, const char *peer_id) {
    struct call_data call;

    if (peer_id == NULL)
        return kk_fail(KKP2P_ERROR_PARAMETER);
    kk_begin(&call, CALL_JOIN_LAN);
    call.texts[0] = peer_id;
    return call_engine(engine, &call);
}

int kkp2p_listen_fd(kkp2p_engine_t *engine) {
    NOT_CANCELLED;
    int fd;

    engine = kk_use(engine);
    if (engine == NULL)
        return kk_fail(KKP2P_ERROR);
    fd = engine->listen;
    kk_release(engine);
    kk_succeed();
    return fd;
}

static void release(void *engine) { kk_release(engine); }

/* As poll; its thread may be cancelled meanwhile, if ``before``, its cancel state, allows it. */
static int wait_for_caller(kkp2p_engine_t *engine, int timeout, int before) {
    struct pollfd ready = {engine->listen, POLLIN, 0};
    int count;

    pthread_cleanup_push(release, engine);
    kk_end_shield(&before);
    count = poll(&ready, 1, timeout);
    kk_begin_shield();
    pthread_cleanup_pop(0);
    return count;
}

static int accept_until(
    kkp2p_engine_t *engine, int64_t deadline, kkp2p_channel_t *channel, int before) {
    struct call_data call;
    int64_t left;
    int count, result;

    do { /* another thread may be faster */
        left = deadline - kk_now_ms();
        count = wait_for_caller(engine, left > 0 ? (int)left : 0, before);
        if (count == 0)
            continue;
        if (count < 0 && errno == EINTR)
            continue;
        kk_begin(&call, CALL_ACCEPT);
        result = kk_call(engine, &call);
        if (result < 0)
            return result;
        if (result > 0)
            return kk_fill_channel(engine, channel, &call);
    } while (left > 0);
    kk_succeed();
    return 0;
}

int kkp2p_accept(kkp2p_engine_t *engine, int timeout, kkp2p_channel_t *channel) {
    NOT_CANCELLED;
    int result;

    if (channel == NULL || timeout < 0)
        return kk_fail(KKP2P_ERROR_PARAMETER);
    engine = kk_use(engine);
    if (engine == NULL)
        return kk_fail(KKP2P_ERROR);
    result = accept_until(engine, kk_now_ms() + timeout, channel, shield);
    kk_release(engine);
    return result;
}

/* The peer id of a context may fill its array. */
static void take_context(
    struct call_data *call, const kkp2p_connect_ctx_t *ctx, char peer_id[sizeof(ctx->peer_id) + 1]) {
    memcpy(peer_id, ctx->peer_id, sizeof(ctx->peer_id));
    peer_id[sizeof(ctx->peer_id)] = '\0';
    call->texts[0] = peer_id;
    call->request.numbers[0] = ctx->channel_type;
    call->request.numbers[1] = ctx->connect_mode;
    call->request.numbers[2] = ctx->encrypt_data;
    call->request.numbers[3] = ctx->timeout;
    call->request.numbers[4] = ctx->connect_desc;
}

static int connect_later(
    kkp2p_engine_t *engine, struct call_data *call, const kkp2p_connect_ctx_t *ctx) {
    int result = kk_expect(engine, ctx, &call->request.tag);

    if (result < 0)
        return kk_fail(result);
    result = kk_call(engine, call);
    if (result >= 0 || kk_forget(engine, call->request.tag))
        return result;
    kk_succeed(); /* the callback has been told already */
    return KKP2P_SUCCESS;
}

static int connect_by(
    enum call number, kkp2p_engine_t *engine, const kkp2p_connect_ctx_t *ctx,
    kkp2p_channel_t *channel) {
    NOT_CANCELLED;
    struct call_data call;
    char peer_id[sizeof(ctx->peer_id) + 1];
    int result;

    if (ctx == NULL || (channel == NULL && ctx->func == NULL))
        return kk_fail(KKP2P_ERROR_PARAMETER);
    kk_begin(&call, number);
    take_context(&call, ctx, peer_id);
    if (ctx->func == NULL)
        channel->fd = -1;
    engine = kk_use(engine);
    if (engine == NULL)
        return kk_fail(KKP2P_ERROR);
    if (ctx->func != NULL)
        result = connect_later(engine, &call, ctx);
    else if ((result = kk_call(engine, &call)) >= 0
             && (result = kk_fill_channel(engine, channel, &call)) >= 0)
        result = KKP2P_SUCCESS;
    kk_release(engine);
    return result;
}

int kkp2p_connect(
    kkp2p_engine_t *engine, const kkp2p_connect_ctx_t *ctx, kkp2p_channel_t *channel) {
    return connect_by(CALL_CONNECT, engine, ctx, channel);
}

int kkp2p_lan_search(
    kkp2p_engine_t *engine, const kkp2p_connect_ctx_t *ctx, kkp2p_channel_t *channel) {
    return connect_by(CALL_LAN_SEARCH, engine, ctx, channel);
}

static int proxy_by(
    enum call number, kkp2p_engine_t *engine, const char *ip, uint16_t port,
    const kkp2p_connect_ctx_t *ctx, uint32_t *proxy_id) {
    struct call_data call;
    char peer_id[sizeof(ctx->peer_id) + 1];
    int result;

    if (ip == NULL || ctx == NULL || proxy_id == NULL || ctx->func != NULL
        || ctx->func_param != NULL)
        return kk_fail(KKP2P_ERROR_PARAMETER);
    kk_begin(&call, number);
    take_context(&call, ctx, peer_id);
    call.request.numbers[5] = port;
    call.texts[1] = ip;
    result = call_engine(engine, &call);
    if (result >= 0)
        *proxy_id = call.answer.channel_id;
    return result;
}

int kkp2p_start_proxy(
    kkp2p_engine_t *engine, const char *ip, uint16_t port, const kkp2p_connect_ctx_t *ctx,
    uint32_t *proxy_id) {
    return proxy_by(CALL_START_PROXY, engine, ip, port, ctx, proxy_id);
}

int kkp2p_start_proxy_udp(
    kkp2p_engine_t *engine, const char *ip, uint16_t port, const kkp2p_connect_ctx_t *ctx,
    uint32_t *proxy_id) {
    return proxy_by(CALL_START_PROXY_UDP, engine, ip, port, ctx, proxy_id);
}

void kkp2p_stop_proxy(kkp2p_engine_t *engine, uint32_t proxy_id) {
    struct call_data call;

    kk_begin(&call, CALL_STOP_PROXY);
    call.request.tag = proxy_id;
    call_engine(engine, &call);
}

void kkp2p_close_channel(kkp2p_engine_t *engine, uint32_t channel_id) {
    NOT_CANCELLED;
    int copy;

    engine = kk_use(engine);
    if (engine == NULL) {
        kk_fail(KKP2P_ERROR);
        return;
    }
    copy = kk_copy_raw(engine, channel_id);
    kk_send_only(engine->control, copy < 0 ? CALL_CLOSE_CHANNEL : CALL_LINGER, channel_id, copy);
    if (copy >= 0)
        close(copy);
    kk_release(engine);
    kk_succeed();
}
