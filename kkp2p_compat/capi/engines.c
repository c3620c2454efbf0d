/* The engines of the program: made, found, used, destroyed, and left behind by a fork. */
#define _GNU_SOURCE
#include "internal.h"

#include <stdio.h>
#include <unistd.h>

#ifndef KKP2P_VERSION
#error "KKP2P_VERSION is the version of kkp2p_compat, as a string"
#endif

/* Version 1's layout. */
typedef char conf_has_its_size[sizeof(void *) != 8 || sizeof(kkp2p_engine_conf_t) == 32 ? 1 : -1];
typedef char ctx_has_its_size[sizeof(void *) != 8 || sizeof(kkp2p_connect_ctx_t) == 72 ? 1 : -1];
typedef char channel_has_its_size[sizeof(kkp2p_channel_t) == 64 ? 1 : -1];

#define POOL_THREADS 4
#define MAX_REASON_BYTES 1024

pthread_mutex_t kk_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t kk_changed = PTHREAD_COND_INITIALIZER;

static kkp2p_engine_t *engines; /* all that have not been freed */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread int last_error;
static __thread char last_text[MAX_REASON_BYTES];

int kk_begin_shield(void) {
    int before;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    return before;
}

void kk_end_shield(int *before) { pthread_setcancelstate(*before, NULL); }

int kk_fail_because(int code, const char *why) {
    last_error = code;
    snprintf(last_text, sizeof(last_text), "%s", why);
    return code;
}

/* The errors that the library finds by itself. */
int kk_fail(int code) {
    return kk_fail_because(code,
        code == KKP2P_ERROR_PARAMETER            ? "an argument is missing, or out of range"
        : code == KKP2P_ERROR_SMALL_BUFF         ? "the buffer is too small"
        : code == KKP2P_ERROR_OUT_OF_MEMORY      ? "out of memory"
        : code == KKP2P_ERROR_SOCKET_FD_OVERFLOW ? "this process, or the host, is out of descriptors"
        : code == KKP2P_ERROR_START_THREAD_POOL  ? "the system has no thread for callbacks"
        : code == KKP2P_ERROR_SYSTEM_INTERNAL    ? "a system call failed"
                                                 : "the engine or the descriptor is closed");
}

void kk_succeed(void) { kk_fail_because(KKP2P_SUCCESS, ""); }

int kkp2p_error_no(void) { return last_error; }

const char *kkp2p_error_text(void) { return last_text; }

void kkp2p_sdk_version(char *version, int length) {
    if (version == NULL || length < 1)
        kk_fail(KKP2P_ERROR_PARAMETER);
    else if ((size_t)length < sizeof(KKP2P_VERSION))
        kk_fail(KKP2P_ERROR_SMALL_BUFF);
    else {
        memcpy(version, KKP2P_VERSION, sizeof(KKP2P_VERSION));
        kk_succeed();
    }
}

/* A fork. */

static void before_fork(void) { pthread_mutex_lock(&kk_lock); }

static void after_fork(void) { pthread_mutex_unlock(&kk_lock); }

static void close_if_open(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* The engines are the parent's.  Their structs stay: a callback may have forked. */
static void after_fork_in_child(void) {
    static const pthread_cond_t fresh = PTHREAD_COND_INITIALIZER;

    for (kkp2p_engine_t *engine = engines; engine != NULL; engine = engine->next) {
        engine->usable = false;
        engine->forked = true;
        close_if_open(&engine->control);
        close_if_open(&engine->events);
        close_if_open(&engine->listen);
        while (engine->pending != NULL) {
            struct pending *pending = engine->pending;
            engine->pending = pending->next;
            free(pending);
        }
    }
    kk_close_answers();
    kk_log_forget();
    kk_disown(NULL);
    kk_changed = fresh;
    pthread_mutex_unlock(&kk_lock);
}

static void add_handlers(void) { pthread_atfork(before_fork, after_fork, after_fork_in_child); }

void kk_watch_forks(void) { pthread_once(&once, add_handlers); }

/* Use. */

static bool is_known(const kkp2p_engine_t *engine) {
    const kkp2p_engine_t *known = engines;

    while (known != NULL && known != engine)
        known = known->next;
    return known != NULL;
}

kkp2p_engine_t *kk_use(kkp2p_engine_t *engine) {
    pthread_mutex_lock(&kk_lock);
    if (is_known(engine) && engine->usable)
        engine->users++;
    else
        engine = NULL;
    pthread_mutex_unlock(&kk_lock);
    return engine;
}

/* With the lock held. */
static void release(kkp2p_engine_t *engine) {
    kkp2p_engine_t **place = &engines;

    if (engine->forked)
        return;
    engine->users--;
    pthread_cond_broadcast(&kk_changed);
    if (engine->users > 0)
        return;
    while (*place != engine)
        place = &(*place)->next;
    *place = engine->next;
    kk_disown(engine);
    close_if_open(&engine->control);
    close_if_open(&engine->events);
    close_if_open(&engine->listen);
    free(engine);
}

void kk_release(kkp2p_engine_t *engine) {
    pthread_mutex_lock(&kk_lock);
    release(engine);
    pthread_mutex_unlock(&kk_lock);
}

int kk_each_engine(int (*function)(kkp2p_engine_t *engine, void *data), void *data) {
    kkp2p_engine_t *engine, *next;
    int failed = 0;

    pthread_mutex_lock(&kk_lock);
    for (engine = engines; engine != NULL; engine = next) {
        if (!engine->usable) {
            next = engine->next;
            continue;
        }
        engine->users++;
        pthread_mutex_unlock(&kk_lock);
        failed |= function(engine, data);
        pthread_mutex_lock(&kk_lock);
        next = engine->next;
        release(engine);
    }
    pthread_mutex_unlock(&kk_lock);
    return failed;
}

/* Begin and end. */

static int set_up(kkp2p_engine_t *engine, const kkp2p_engine_conf_t *conf, int timeout) {
    struct call_data call;
    struct sink *sink;
    int level, generation, failed = kk_start_companion(&engine->control);

    if (failed)
        return failed; /* the reason is set */
    kk_begin(&call, CALL_INIT);
    sink = kk_log_hold(&call.sent_fd, &level, &generation);
    call.request.tag = (uint32_t)level;
    call.request.numbers[0] = conf->login_port;
    call.request.numbers[1] = conf->lan_search_port;
    call.request.numbers[2] = conf->disable_upnp;
    call.request.numbers[3] = conf->max_log_size;
    call.request.numbers[4] = conf->enable_engine_thread_pool;
    call.request.numbers[5] = timeout;
    call.texts[0] = conf->login_domain;
    call.texts[1] = conf->log_path;
    failed = kk_exchange(engine->control, &call);
    kk_log_let_go(sink);
    if (failed)
        return kk_fail(failed);
    kk_report(&call);
    if (call.answer.result < 0)
        return call.answer.result;
    engine->listen = call.fds[0] < 0 ? -1 : kk_private(call.fds[0]);
    engine->events = call.fds[1] < 0 ? -1 : kk_private(call.fds[1]);
    if (engine->listen < 0 || engine->events < 0)
        return kk_fail(KKP2P_ERROR_SOCKET_FD_OVERFLOW);
    engine->most_callback_threads = conf->enable_engine_thread_pool ? POOL_THREADS : 1;
    pthread_mutex_lock(&kk_lock);
    engine->usable = true;
    pthread_mutex_unlock(&kk_lock);
    kk_log_catch_up(engine, generation);
    return 0;
}

kkp2p_engine_t *kkp2p_engine_init(const kkp2p_engine_conf_t *conf, int timeout) {
    NOT_CANCELLED;
    kkp2p_engine_t *engine;
    int failed;

    if (conf == NULL || timeout < 0) {
        kk_fail(KKP2P_ERROR_PARAMETER);
        return NULL;
    }
    kk_watch_forks();
    engine = calloc(1, sizeof(*engine));
    if (engine == NULL) {
        kk_fail(KKP2P_ERROR_OUT_OF_MEMORY);
        return NULL;
    }
    engine->control = engine->events = engine->listen = -1;
    engine->users = 1;
    pthread_mutex_lock(&kk_lock);
    engine->next = engines;
    engines = engine;
    pthread_mutex_unlock(&kk_lock);
    failed = set_up(engine, conf, timeout);
    if (failed) {
        kk_release(engine);
        return NULL;
    }
    kk_succeed();
    return engine;
}

void kkp2p_engine_destroy(kkp2p_engine_t *engine) {
    NOT_CANCELLED;
    struct call_data call;
    bool found;

    pthread_mutex_lock(&kk_lock);
    found = is_known(engine) && engine->usable;
    if (found)
        engine->usable = false;
    pthread_mutex_unlock(&kk_lock);
    if (!found) {
        kk_fail(KKP2P_ERROR_PARAMETER);
        return;
    }
    kk_begin(&call, CALL_DESTROY);
    kk_exchange(engine->control, &call); /* without an answer it is gone already */
    pthread_mutex_lock(&kk_lock);
    while (engine->users > 1 && !kk_in_callback_of(engine))
        pthread_cond_wait(&kk_changed, &kk_lock);
    release(engine);
    pthread_mutex_unlock(&kk_lock);
    kk_succeed();
}
