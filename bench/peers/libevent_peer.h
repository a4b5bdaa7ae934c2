/* The start and the end that libevent's two servers have in common. */
#ifndef PENSTOCK_BENCH_LIBEVENT_PEER_H
#define PENSTOCK_BENCH_LIBEVENT_PEER_H

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <string.h>

#include "peer.h"

static inline void set_no_delay(evutil_socket_t fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Everything was written: the connection that waited for it can go. */
static inline void on_last_byte_written(struct bufferevent* connection, void* context) {
  (void)context;
  if (evbuffer_get_length(bufferevent_get_output(connection)) == 0) bufferevent_free(connection);
}

/* At the peer's end, what is still queued is written before the connection is freed. */
static inline void on_event(struct bufferevent* connection, short events, void* context) {
  (void)context;
  if ((events & BEV_EVENT_ERROR) != 0) {
    bufferevent_free(connection);
  } else if ((events & BEV_EVENT_EOF) != 0) {
    if (evbuffer_get_length(bufferevent_get_output(connection)) == 0) {
      bufferevent_free(connection);
      return;
    }
    bufferevent_disable(connection, EV_READ);
    bufferevent_setcb(connection, NULL, on_last_byte_written, on_event, NULL);
  }
}

static inline void on_stop_signal(evutil_socket_t signal_number, short events, void* base) {
  (void)signal_number;
  (void)events;
  event_base_loopexit((struct event_base*)base, NULL);
}

/* Serves until SIGTERM or SIGINT. Like the documentation's listener example, it sets no error
 * callback. */
static inline int serve(evconnlistener_cb on_accept) {
  prepare_process();
  struct event_base* base = event_base_new();
  if (base == NULL) die("event_base_new");
  struct sockaddr_in address = any_local_port();
  struct evconnlistener* listener = evconnlistener_new_bind(
      base, on_accept, NULL, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE,
      kListenBacklog, (struct sockaddr*)&address, sizeof address);
  if (listener == NULL) die("evconnlistener_new_bind");
  socklen_t address_bytes = sizeof address;
  if (getsockname(evconnlistener_get_fd(listener), (struct sockaddr*)&address, &address_bytes) != 0)
    die("getsockname");
  struct event* on_terminate = evsignal_new(base, SIGTERM, on_stop_signal, base);
  struct event* on_interrupt = evsignal_new(base, SIGINT, on_stop_signal, base);
  if (on_terminate == NULL || on_interrupt == NULL || event_add(on_terminate, NULL) != 0 ||
      event_add(on_interrupt, NULL) != 0)
    die("evsignal_new");
  print_listening(&address, "libevent");
  event_base_dispatch(base);
  evconnlistener_free(listener);
  event_free(on_terminate);
  event_free(on_interrupt);
  event_base_free(base);
  return 0;
}

#endif
