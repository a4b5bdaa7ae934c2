/* Bulk with libevent's bufferevents: replies are added to the output by reference, so that nothing
 * is copied in user space, and one write may take a whole reply. With --default-writes the library's
 * own bound of 16 KiB per write stays. The protocol is that of ../limit/epoll_bulk.c.
 */
#include <stdbool.h>

#include "../pattern.h"
#include "libevent_peer.h"

static unsigned char* payload;
static bool has_default_writes;

static void on_readable(struct bufferevent* connection, void* context) {
  (void)context;
  struct evbuffer* input = bufferevent_get_input(connection);
  struct evbuffer* output = bufferevent_get_output(connection);
  unsigned char request[kRequestBytes];
  while (evbuffer_get_length(input) >= kRequestBytes) {
    evbuffer_remove(input, request, kRequestBytes);
    const uint64_t wanted_bytes = read_request(request);
    if (wanted_bytes > PENSTOCK_BENCH_BULK_PAYLOAD_BYTES) {
      bufferevent_free(connection);
      return;
    }
    evbuffer_add_reference(output, payload, (size_t)wanted_bytes, NULL, NULL);
  }
}

static void on_accepted(struct evconnlistener* listener, evutil_socket_t fd,
                        struct sockaddr* address, int address_bytes, void* context) {
  (void)address;
  (void)address_bytes;
  (void)context;
  struct event_base* base = evconnlistener_get_base(listener);
  struct bufferevent* connection = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
  if (connection == NULL) die("bufferevent_socket_new");
  set_no_delay(fd);
  if (!has_default_writes)
    bufferevent_set_max_single_write(connection, PENSTOCK_BENCH_BULK_PAYLOAD_BYTES);
  bufferevent_setcb(connection, on_readable, NULL, on_event, NULL);
  bufferevent_enable(connection, EV_READ | EV_WRITE);
}

int main(int argument_count, char** arguments) {
  has_default_writes = argument_count == 2 && strcmp(arguments[1], "--default-writes") == 0;
  payload = malloc(PENSTOCK_BENCH_BULK_PAYLOAD_BYTES);
  if (payload == NULL) die("malloc");
  fill_pattern(payload, PENSTOCK_BENCH_BULK_PAYLOAD_BYTES, 0);
  return serve(on_accepted);
}
