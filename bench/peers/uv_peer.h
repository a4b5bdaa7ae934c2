/* The start and the end that libuv's three servers have in common. */
#ifndef PENSTOCK_BENCH_UV_PEER_H
#define PENSTOCK_BENCH_UV_PEER_H

#include <string.h>
#include <uv.h>

#include "peer.h"

static inline void on_stop_signal(uv_signal_t* handle, int signal_number) {
  (void)signal_number;
  uv_stop(handle->loop);
}

/* Serves until SIGTERM or SIGINT. */
static inline int serve(uv_connection_cb on_connection, const char* name) {
  prepare_process();
  static uv_tcp_t listener;
  static uv_signal_t on_terminate;
  static uv_signal_t on_interrupt;
  uv_loop_t* loop = uv_default_loop();
  struct sockaddr_in address = any_local_port();
  int address_bytes = sizeof address;
  if (uv_tcp_init(loop, &listener) != 0 ||
      uv_tcp_bind(&listener, (const struct sockaddr*)&address, 0) != 0)
    die("uv_tcp_bind");
  if (uv_listen((uv_stream_t*)&listener, kListenBacklog, on_connection) != 0) die("uv_listen");
  if (uv_tcp_getsockname(&listener, (struct sockaddr*)&address, &address_bytes) != 0)
    die("uv_tcp_getsockname");
  if (uv_signal_init(loop, &on_terminate) != 0 || uv_signal_init(loop, &on_interrupt) != 0 ||
      uv_signal_start(&on_terminate, on_stop_signal, SIGTERM) != 0 ||
      uv_signal_start(&on_interrupt, on_stop_signal, SIGINT) != 0)
    die("uv_signal_start");
  print_listening(&address, name);
  uv_run(loop, UV_RUN_DEFAULT);
  return 0; /* the kernel closes what is open */
}

#endif
