/* Echo with libevent's bufferevents, as its documentation teaches: the input buffer is moved to the
 * output buffer, and libevent does the reading and the writing.
 *
 * Nothing bounds the output: bufferevents read on while a peer does not. libevent reads at most
 * 4 KiB at a time whatever bufferevent_set_max_single_read() says (EVBUFFER_MAX_READ in 2.1).
 */
#include "libevent_peer.h"

static void on_readable(struct bufferevent* connection, void* context) {
  (void)context;
  evbuffer_add_buffer(bufferevent_get_output(connection), bufferevent_get_input(connection));
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
  bufferevent_set_max_single_read(connection, kReadBytesMax);
  bufferevent_set_max_single_write(connection, kReadBytesMax);
  bufferevent_setcb(connection, on_readable, NULL, on_event, NULL);
  bufferevent_enable(connection, EV_READ | EV_WRITE);
}

int main(void) { return serve(on_accepted); }
