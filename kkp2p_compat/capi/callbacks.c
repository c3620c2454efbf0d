/* Asynchronous connects: who waits for one, and the threads that call back. */
#define _GNU_SOURCE
#include "internal.h"

#include <signal.h>
#include <unistd.h>

static __thread kkp2p_engine_t *in_callback_of;

bool kk_in_callback_of(kkp2p_engine_t *engine) { return in_callback_of == engine; }

int kk_start_thread(void *(*function)(void *argument), void *argument) {
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;
    int error;

    /* The program's signals are handled by the program's threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    error = pthread_create(&thread, &attributes, function, argument);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error ? KKP2P_ERROR_START_THREAD_POOL : 0;
}

/* The one with this tag, or any if it is 0; NULL: there is none.  It is the caller's to free. */
static struct pending *take(kkp2p_engine_t *engine, uint32_t tag) {
    struct pending *found = NULL;

    pthread_mutex_lock(&kk_lock);
    for (struct pending **place = &engine->pending; *place != NULL; place = &(*place)->next)
        if (tag == 0 || (*place)->tag == tag) {
            found = *place;
            *place = found->next;
            break;
        }
    pthread_mutex_unlock(&kk_lock);
    return found;
}

static void call_back(struct pending *pending, int result, kkp2p_channel_t *channel) {
    if (result < 0) {
        channel->fd = -1;
        result = KKP2P_ERROR; /* whatever it was */
    }
    pending->func(result, channel, pending->param);
    free(pending);
}

static void handle_event(kkp2p_engine_t *engine, struct call_data *event) {
    struct pending *pending = take(engine, event->answer.tag);
    kkp2p_channel_t channel;
    int result = event->answer.result;

    memset(&channel, 0, sizeof(channel));
    kk_report(event);
    if (result >= 0)
        result = kk_fill_channel(engine, &channel, event);
    else
        memcpy(channel.peer_id, event->answer.peer_id, sizeof(channel.peer_id) - 1);
    if (pending != NULL)
        call_back(pending, result, &channel);
    else if (result >= 0)
        kkp2p_close_fd(channel.fd);
}

static void *run(void *argument) {
    kkp2p_engine_t *engine = argument;
    struct call_data event;
    struct pending *pending;

    in_callback_of = engine;
    while (kk_receive(engine->events, &event) > 0)
        handle_event(engine, &event);
    /* The engine has ended. */
    while ((pending = take(engine, 0)) != NULL) {
        kkp2p_channel_t channel;
        memset(&channel, 0, sizeof(channel));
        kk_fail(KKP2P_ERROR);
        call_back(pending, KKP2P_ERROR, &channel);
    }
    in_callback_of = NULL;
    kk_release(engine);
    return NULL;
}

/* Starts the threads that are missing; an error: there is not even one. */
static int need_threads(kkp2p_engine_t *engine) {
    int failed = 0;

    pthread_mutex_lock(&kk_lock);
    while (!failed && engine->callback_threads < engine->most_callback_threads) {
        failed = kk_start_thread(run, engine);
        if (!failed) {
            engine->callback_threads++;
            engine->users++;
        }
    }
    if (engine->callback_threads > 0)
        failed = 0;
    pthread_mutex_unlock(&kk_lock);
    return failed;
}

int kk_expect(kkp2p_engine_t *engine, const kkp2p_connect_ctx_t *ctx, uint32_t *tag) {
    struct pending *pending;
    int failed = need_threads(engine);

    if (failed)
        return failed;
    pending = malloc(sizeof(*pending));
    if (pending == NULL)
        return KKP2P_ERROR_OUT_OF_MEMORY;
    pending->func = ctx->func;
    pending->param = ctx->func_param;
    pthread_mutex_lock(&kk_lock);
    if (++engine->last_tag == 0)
        engine->last_tag = 1;
    *tag = pending->tag = engine->last_tag;
    pending->next = engine->pending;
    engine->pending = pending;
    pthread_mutex_unlock(&kk_lock);
    return 0;
}

bool kk_forget(kkp2p_engine_t *engine, uint32_t tag) {
    struct pending *pending = take(engine, tag);

    free(pending);
    return pending != NULL;
}
