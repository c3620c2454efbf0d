/* What the files of the library share.  Nothing of it is exported. */
#ifndef KKP2P_INTERNAL_H
#define KKP2P_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "kkp2p_sdk.h"

/*
 * The wire between the library and a companion, which has the engine: see wire.py, its other side.
 * Native byte order, as both are on one host; SOCK_SEQPACKET, so that a packet stays whole.
 */
#define WIRE_VERSION 1
#define MAX_TEXT_BYTES 8192
#define NO_TEXT UINT32_MAX /* as a length: NULL */

enum call {
    CALL_INIT = 1, CALL_DESTROY, CALL_ENGINE_LEVEL, CALL_LEVEL, CALL_LOG_TO, CALL_LOG_END,
    CALL_DOMAINIP, CALL_JOIN_NET, CALL_JOIN_LAN, CALL_ACCEPT, CALL_CONNECT, CALL_LAN_SEARCH,
    CALL_START_PROXY, CALL_START_PROXY_UDP, CALL_STOP_PROXY, CALL_CLOSE_CHANNEL, CALL_LINGER
};

#define NUMBERS 6
#define TEXTS 2

struct request {
    uint32_t call;
    uint32_t tag; /* of an asynchronous connect; 0: it waits */
    int32_t numbers[NUMBERS];
    uint32_t lengths[TEXTS]; /* of the texts behind */
};

struct answer {
    int32_t result;
    int32_t error; /* for kkp2p_error_no */
    uint32_t tag;
    char peer_id[36];
    int32_t channel_type, transmit_mode, encrypt_data;
    uint32_t channel_id;
    int32_t is_ipv6_p2p, connect_desc;
    uint32_t length; /* of the text behind */
};

/* A call: what is sent, besides a descriptor to answer to, and what has come back. */
struct call_data {
    struct request request;
    const char *texts[TEXTS];
    int sent_fd; /* -1: none */
    struct answer answer;
    char text[MAX_TEXT_BYTES + 1];
    int fds[2]; /* that came with the answer; -1: none */
};

/* An asynchronous connect that is under way. */
struct pending {
    struct pending *next;
    uint32_t tag;
    kkp2p_connect_cb func;
    void *param;
};

/* All fields below the first line belong to whoever holds kk_lock. */
struct kkp2p_engine_s {
    int control, events, listen; /* never change while somebody uses the engine */
    struct kkp2p_engine_s *next;
    int users;      /* calls and callback threads under way, and one until it is destroyed */
    bool usable;    /* not destroyed */
    bool forked;    /* a forked child's copy: nothing is open */
    int callback_threads, most_callback_threads;
    uint32_t last_tag;
    struct pending *pending;
};

/*
 * At the top of a function that holds kk_lock or uses an engine: until it returns, its thread is not
 * cancelled (pthreads(7)), as most system calls would let it be.
 */
#define NOT_CANCELLED __attribute__((cleanup(kk_end_shield))) int shield = kk_begin_shield()

extern pthread_mutex_t kk_lock;
extern pthread_cond_t kk_changed; /* users of an engine, or the log's thread */

/* engines.c */
int kk_begin_shield(void); /* the state before */
void kk_end_shield(int *before);
kkp2p_engine_t *kk_use(kkp2p_engine_t *engine); /* NULL: it is not usable; else kk_release it */
void kk_release(kkp2p_engine_t *engine);
void kk_watch_forks(void);
int kk_each_engine(int (*function)(kkp2p_engine_t *engine, void *data), void *data);
/* For kkp2p_error_no and kkp2p_error_text. */
int kk_fail(int code); /* returns it */
int kk_fail_because(int code, const char *why);
void kk_succeed(void);

/* calls.c */
void kk_begin(struct call_data *call, enum call number);
int kk_exchange(int control, struct call_data *call); /* 0, or an error: there is no answer */
int kk_call(kkp2p_engine_t *engine, struct call_data *call); /* its result */
void kk_report(const struct call_data *call); /* what the companion says of errors */
bool kk_send_only(int control, enum call number, uint32_t channel_id, int fd);
void kk_close_answers(void); /* in a forked child */
ssize_t kk_receive(int fd, struct call_data *call); /* 0: there is no more */

/* companion.c */
int kk_start_companion(int *control); /* 0, or an error whose reason is set */
int kk_private(int fd); /* close on exec, and above standard error; -1: there is no such number */

/* callbacks.c */
int kk_expect(kkp2p_engine_t *engine, const kkp2p_connect_ctx_t *ctx, uint32_t *tag);
bool kk_forget(kkp2p_engine_t *engine, uint32_t tag); /* false: its callback has been called */
bool kk_in_callback_of(kkp2p_engine_t *engine);
int kk_start_thread(void *(*function)(void *argument), void *argument);

/* log.c */
struct sink *kk_log_hold(int *fd, int *level, int *generation); /* NULL and -1: to files */
void kk_log_let_go(struct sink *sink);
void kk_log_catch_up(kkp2p_engine_t *engine, int generation); /* with what has changed since */
void kk_log_forget(void); /* in a forked child */

/* bytes.c */
int kk_fill_channel(
    kkp2p_engine_t *engine, kkp2p_channel_t *channel, const struct call_data *call); /* its result */
void kk_disown(kkp2p_engine_t *engine); /* its channels; NULL: all; with kk_lock held */
int kk_copy_raw(kkp2p_engine_t *engine, uint32_t channel_id); /* -1: it is not raw, or closed */
int64_t kk_now_ms(void);

#endif
