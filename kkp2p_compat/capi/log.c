/* Version 2's log: the lines of all engines go to one callback, on a thread of its own. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_LINE_BYTES 16384 /* a companion cuts longer ones */

/* Where lines go to.  Companions have copies of write_fd: the thread ends when all are closed. */
struct sink {
    struct sink *next;
    kkp2p_log_callback callback;
    void *param;
    int read_fd, write_fd; /* -1: a forked child's copy */
    int writers;           /* who needs write_fd: being current, and engines that are being told */
    int holders;           /* the thread, and log_destroy */
    bool ended;
    char line[MAX_LINE_BYTES + 1];
};

/* With kk_lock held. */
static struct sink *sinks; /* whose thread runs */
static struct sink *current;
static int level = 2;
static int generation; /* of what engines are told */
static kkp2p_log_callback inherited; /* a forked child's: its first engine starts a thread for it */
static void *inherited_param;

static __thread bool in_callback;

static void unlink_sink(struct sink *sink) {
    struct sink **place = &sinks;

    while (*place != sink)
        place = &(*place)->next;
    *place = sink->next;
}

static void *run(void *argument) {
    struct sink *sink = argument;
    ssize_t count;
    bool last;

    in_callback = true;
    while ((count = recv(sink->read_fd, sink->line, MAX_LINE_BYTES, 0)) > 0
           || (count < 0 && errno == EINTR)) {
        if (count < 0)
            continue;
        sink->line[count] = '\0';
        sink->callback(sink->line, (int)count, sink->param);
    }
    pthread_mutex_lock(&kk_lock);
    if (sink->read_fd >= 0)
        close(sink->read_fd);
    unlink_sink(sink);
    sink->ended = true;
    last = --sink->holders == 0;
    pthread_cond_broadcast(&kk_changed);
    pthread_mutex_unlock(&kk_lock);
    if (last)
        free(sink);
    return NULL;
}

/* With kk_lock held, so that no forked child has copies of the descriptors. */
static int start(kkp2p_log_callback callback, void *param, int its_level) {
    struct sink *sink = calloc(1, sizeof(*sink));
    int pair[2];

    if (sink == NULL)
        return KKP2P_ERROR_OUT_OF_MEMORY;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        free(sink);
        return KKP2P_ERROR_SOCKET_FD_OVERFLOW;
    }
    sink->callback = callback;
    sink->param = param;
    sink->read_fd = pair[0];
    sink->write_fd = pair[1];
    sink->writers = 1;
    sink->holders = 2;
    if (current != NULL || kk_start_thread(run, sink)) { /* another thread was faster */
        close(pair[0]);
        close(pair[1]);
        free(sink);
        return current != NULL ? KKP2P_ERROR : KKP2P_ERROR_START_THREAD_POOL;
    }
    sink->next = sinks;
    sinks = current = sink;
    level = its_level;
    generation++;
    return 0;
}

static void let_go(struct sink *sink) {
    pthread_mutex_lock(&kk_lock);
    if (--sink->writers == 0 && sink->write_fd >= 0)
        close(sink->write_fd);
    pthread_mutex_unlock(&kk_lock);
}

struct sink *kk_log_hold(int *fd, int *its_level, int *its_generation) {
    struct sink *sink;

    pthread_mutex_lock(&kk_lock);
    if (current == NULL && inherited != NULL)
        start(inherited, inherited_param, level);
    sink = current;
    *its_level = level;
    *its_generation = generation;
    *fd = sink == NULL ? -1 : sink->write_fd;
    if (sink != NULL)
        sink->writers++;
    pthread_mutex_unlock(&kk_lock);
    return sink;
}

void kk_log_let_go(struct sink *sink) {
    if (sink != NULL)
        let_go(sink);
}

static int tell(kkp2p_engine_t *engine, void *unused) {
    struct call_data call;
    struct sink *sink;
    int its_level, its_generation, failed;

    (void)unused;
    kk_begin(&call, CALL_LOG_TO);
    sink = kk_log_hold(&call.sent_fd, &its_level, &its_generation);
    if (sink == NULL)
        call.request.call = CALL_LOG_END;
    call.request.numbers[0] = its_level;
    failed = kk_exchange(engine->control, &call);
    kk_log_let_go(sink);
    return failed;
}

void kk_log_catch_up(kkp2p_engine_t *engine, int its_generation) {
    bool same;

    pthread_mutex_lock(&kk_lock);
    same = generation == its_generation;
    pthread_mutex_unlock(&kk_lock);
    if (!same)
        tell(engine, NULL);
}

/* They stay in memory: a callback may have forked. */
void kk_log_forget(void) {
    for (struct sink *sink = sinks; sink != NULL; sink = sink->next) {
        if (sink->read_fd >= 0)
            close(sink->read_fd);
        if (sink->write_fd >= 0 && sink->writers > 0)
            close(sink->write_fd);
        sink->read_fd = sink->write_fd = -1;
    }
    if (current != NULL) {
        inherited = current->callback;
        inherited_param = current->param;
    }
    current = NULL;
    generation++;
}

void kkp2p_log_init(kkp2p_log_callback callback, void *param, int its_level) {
    NOT_CANCELLED;
    int failed;

    if (callback == NULL || its_level < 0 || its_level > 4) {
        kk_fail(KKP2P_ERROR_PARAMETER);
        return;
    }
    kk_watch_forks();
    kkp2p_log_destroy();
    pthread_mutex_lock(&kk_lock);
    failed = start(callback, param, its_level);
    pthread_mutex_unlock(&kk_lock);
    if (failed) {
        kk_fail(failed);
        return;
    }
    kk_each_engine(tell, NULL);
    kk_succeed();
}

void kkp2p_log_destroy(void) {
    NOT_CANCELLED;
    struct sink *sink;
    bool last;

    pthread_mutex_lock(&kk_lock);
    sink = current;
    current = NULL;
    inherited = NULL;
    generation++;
    pthread_mutex_unlock(&kk_lock);
    kk_succeed();
    if (sink == NULL)
        return;
    kk_each_engine(tell, NULL);
    let_go(sink);
    pthread_mutex_lock(&kk_lock);
    while (!sink->ended && !in_callback)
        pthread_cond_wait(&kk_changed, &kk_lock);
    last = --sink->holders == 0;
    pthread_mutex_unlock(&kk_lock);
    if (last)
        free(sink);
}

static int tell_level(kkp2p_engine_t *engine, void *data) {
    struct call_data call;

    kk_begin(&call, CALL_LEVEL);
    call.request.numbers[0] = *(int *)data;
    return kk_exchange(engine->control, &call);
}

void kkp2p_log_switch_level(int its_level) {
    NOT_CANCELLED;

    if (its_level < 0 || its_level > 4) {
        kk_fail(KKP2P_ERROR_PARAMETER);
        return;
    }
    pthread_mutex_lock(&kk_lock);
    level = its_level;
    generation++;
    pthread_mutex_unlock(&kk_lock);
    kk_each_engine(tell_level, &its_level);
    kk_succeed();
}
