/*
 * The C interface of KKP2P: log in with a peer id, connect to another, get a descriptor.
 *
 * It has the names of the SDK's versions 1 and 2.0.1, and the binary layout of version 1.  Times are
 * in milliseconds.  Every function may be called from any thread, and after a fork: the child's
 * copies of the engines are dead (calls with them fail), and it may make engines of its own.
 */
#ifndef KKP2P_SDK_H
#define KKP2P_SDK_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef KKP2P_API
#define KKP2P_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Results. */
#define KKP2P_SUCCESS 0
#define KKP2P_ERROR (-1)
#define KKP2P_ERROR_DOMAIN_PARAM_ERROR (-101)      /* login_domain is malformed */
#define KKP2P_ERROR_ANALYSIS_DOMAIN_TIMEOUT (-102) /* login_domain did not resolve in time */
#define KKP2P_ERROR_ANALYSIS_DOMAIN_FAILURE (-103) /* the resolver failed, or knows no such name */
#define KKP2P_ERROR_DOMAIN_NO_IP (-104)            /* login_domain has no address */
#define KKP2P_ERROR_SYSTEM_INTERNAL (-105)         /* a failing system call, or a bug: see the log */
#define KKP2P_ERROR_PARAMETER (-106)               /* an argument is out of range */
#define KKP2P_ERROR_CONN_DISCONNECT (-107)         /* the connection broke, or a limit of the cloud */
#define KKP2P_ERROR_OTHER_DISCONNECT (-108)        /* the other peer refuses */
#define KKP2P_ERROR_CONNECT_TIMEOUT (-109)         /* not connected in time, or not online */
#define KKP2P_ERROR_INVALID_PEER_ID (-110)         /* no peer id, or not one that the cloud knows */
#define KKP2P_ERROR_INVALID_PEER_KEY (-111)        /* wrong secret; or not the peer's known key */
#define KKP2P_ERROR_LANMODE_MUSTUSE_P2P (-112)     /* kkp2p_lan_search wants connect_mode 1 */
#define KKP2P_ERROR_BIND_IP (-113)                 /* a proxy cannot listen there */
#define KKP2P_ERROR_SOCKET_REUSE_ADDR (-114)       /* not returned */
#define KKP2P_ERROR_SOCKET_BIND (-115)             /* another program has the LAN search port */
#define KKP2P_ERROR_INVALID_DOMAIN (-116)          /* logging in needs a login_domain */
#define KKP2P_ERROR_DUPLICATE_ID (-117)            /* another login with our peer id ended ours */
#define KKP2P_ERROR_OUT_OF_MEMORY (-118)
#define KKP2P_ERROR_SOCKET_FD_OVERFLOW (-119)      /* this process is out of descriptors */
#define KKP2P_ERROR_START_THREAD_POOL (-120)       /* the system has no thread for us */
#define KKP2P_ERROR_SMALL_BUFF (-121)              /* the buffer cannot hold the answer */
#define KKP2P_ERROR_TIMEOUT (-122)                 /* not returned */

/* channel_type */
#define KKP2P_TCP_CHANNEL 0    /* a stream of bytes */
#define KKP2P_UDP_CHANNEL 1    /* messages, which may be lost */
#define KKP2P_WEBRTC_CHANNEL 2 /* not supported */

typedef struct kkp2p_engine_s kkp2p_engine_t;

/* How an engine finds its cloud, and where it logs.  All zeroes but what is needed. */
typedef struct kkp2p_engine_conf_s {
    char *login_domain;             /* a name, an IP, or several joined with '|'; NULL: LAN only */
    uint16_t login_port;
    uint16_t lan_search_port;       /* 0: no LAN searches */
    char disable_upnp;              /* 1: ask no router for a port mapping */
    char *log_path;                 /* folder of kkp2p_engine.log; NULL: the working folder */
    int max_log_size;               /* bytes; then it is renamed to kkp2p_engine.log.bak */
    char enable_engine_thread_pool; /* 1: connect callbacks run on four threads instead of one */
} kkp2p_engine_conf_t;

/* One connection to a peer. */
typedef struct kkp2p_channel_s {
    char peer_id[33];
    int channel_type;
    int transmit_mode; /* 1: p2p, 2: relay */
    int encrypt_data;
    uint32_t channel_id;
    int is_ipv6_p2p;
    int connect_desc;  /* the caller's */
    int fd;            /* non-blocking; to be read and written */
} kkp2p_channel_t;

/* result: 0, or -1 and channel->fd is -1.  The channel is valid during the call. */
typedef void (*kkp2p_connect_cb)(int result, const kkp2p_channel_t *channel, void *func_param);

/* Whom to connect to, and how. */
typedef struct kkp2p_connect_ctx_s {
    char peer_id[33];
    int channel_type;
    int connect_mode;      /* 0: p2p, or else relay; 1: p2p; 2: relay */
    int encrypt_data;      /* 1: encrypt relayed data end to end (p2p always is) */
    int timeout;
    int connect_desc;      /* handed to the other peer */
    kkp2p_connect_cb func; /* NULL: the call waits; else this is called when it is over */
    void *func_param;
} kkp2p_connect_ctx_t;

typedef int (*kkp2p_log_callback)(const char *text, int length, void *param);

/* Engines. */

KKP2P_API void kkp2p_sdk_version(char *version, int length);

/* NULL on an error.  timeout: to resolve login_domain. */
KKP2P_API kkp2p_engine_t *kkp2p_engine_init(const kkp2p_engine_conf_t *conf, int timeout);
/* What was written has 5 s to arrive.  Waits for callbacks under way, unless called from one. */
KKP2P_API void kkp2p_engine_destroy(kkp2p_engine_t *engine);
/* The error of this thread's last call that failed to do its work; 0: it did not. */
KKP2P_API int kkp2p_error_no(void);
/* Why, in one sentence for people; "": it did not.  Valid until this thread's next call.  Both also
   tell in a connect callback what its -1 was.  (An extension of the SDK.) */
KKP2P_API const char *kkp2p_error_text(void);

/* Levels: 0 none, 1 error, 2 normal (the default), 3 info, 4 debug. */
KKP2P_API void kkp2p_switch_log_level(kkp2p_engine_t *engine, int level);
/* All engines log to a callback, on a thread of its own, until kkp2p_log_destroy. */
KKP2P_API void kkp2p_log_init(kkp2p_log_callback callback, void *param, int level);
/* Waits for a callback under way, unless called from it. */
KKP2P_API void kkp2p_log_destroy(void);
KKP2P_API void kkp2p_log_switch_level(int level);

/* char hosts[ip_count][ip_length].  How many addresses of login_domain there are in it. */
KKP2P_API int kkp2p_get_domainip(kkp2p_engine_t *engine, char *hosts, int ip_length, int ip_count);

/* Being found.  0, or an error. */

KKP2P_API int kkp2p_join_net(kkp2p_engine_t *engine, const char *peer_id, const char *secret);
KKP2P_API int kkp2p_join_lan(kkp2p_engine_t *engine, const char *peer_id);
/* Polls readable when there is something to accept; do not read it. */
KKP2P_API int kkp2p_listen_fd(kkp2p_engine_t *engine);
/* 1: a channel; 0: none in time; or an error. */
KKP2P_API int kkp2p_accept(kkp2p_engine_t *engine, int timeout, kkp2p_channel_t *channel);

/* Connecting.  0, or an error. */

KKP2P_API int kkp2p_connect(
    kkp2p_engine_t *engine, const kkp2p_connect_ctx_t *ctx, kkp2p_channel_t *channel);
/* Over the LAN only, to a peer that has called kkp2p_join_lan.  ctx->connect_mode must be 1. */
KKP2P_API int kkp2p_lan_search(
    kkp2p_engine_t *engine, const kkp2p_connect_ctx_t *ctx, kkp2p_channel_t *channel);
/* Listen on ip:port, and forward each connection to ctx->peer_id. */
KKP2P_API int kkp2p_start_proxy(
    kkp2p_engine_t *engine, const char *ip, uint16_t port, const kkp2p_connect_ctx_t *ctx,
    uint32_t *proxy_id);
KKP2P_API int kkp2p_start_proxy_udp(
    kkp2p_engine_t *engine, const char *ip, uint16_t port, const kkp2p_connect_ctx_t *ctx,
    uint32_t *proxy_id);
KKP2P_API void kkp2p_stop_proxy(kkp2p_engine_t *engine, uint32_t proxy_id);

/* Bytes.  How many; 0: none in time; -1: nothing more will come, or is taken; or an error. */

KKP2P_API int kkp2p_read(int fd, char *buff, int length, int timeout);
KKP2P_API int kkp2p_write(int fd, const char *buff, int length, int timeout);
/* End a channel; what was written still arrives.  The descriptor then reads end of stream. */
KKP2P_API void kkp2p_close_channel(kkp2p_engine_t *engine, uint32_t channel_id);
/* Close its descriptor; what was written still arrives. */
KKP2P_API void kkp2p_close_fd(int fd);

/* HMAC-SHA1 into the 20 bytes at out; *out_len becomes 20.  0, or an error. */
KKP2P_API int kkp2p_hmac_sha1(
    const void *key, int key_len, const void *data, int data_len, void *out, int *out_len);

#ifdef __cplusplus
}
#endif

#endif
