/* Bulk with libuv: uv_try_write of the whole reply, then one uv_write of what the kernel did not
 * take, straight from the shared payload. The connection is not read meanwhile. The protocol is
 * that of ../limit/epoll_bulk.c.
 */
#include "../pattern.h"
#include "uv_peer.h"

struct connection {
  uv_tcp_t tcp; /* first: libuv hands out a pointer to it */
  uv_write_t write;
  size_t request_bytes;
  unsigned char request[kRequestBytes];
};

static unsigned char* payload;

static void on_read(uv_stream_t* client, ssize_t received, const uv_buf_t* buffer);

static void on_closed(uv_handle_t* handle) { free(handle); }

static void close_connection(uv_stream_t* client) {
  if (!uv_is_closing((uv_handle_t*)client)) uv_close((uv_handle_t*)client, on_closed);
}

/* One request at a time: what follows stays in the kernel until the reply is sent. */
static void allocate(uv_handle_t* handle, size_t suggested_bytes, uv_buf_t* buffer) {
  (void)suggested_bytes;
  struct connection* connection = (struct connection*)handle;
  *buffer = uv_buf_init((char*)connection->request + connection->request_bytes,
                        (unsigned)(kRequestBytes - connection->request_bytes));
}

static void on_written(uv_write_t* request, int status) {
  if (status == 0) {
    uv_read_start(request->handle, allocate, on_read);
  } else {
    close_connection(request->handle);
  }
}

static void answer(uv_stream_t* client, size_t wanted_bytes) {
  struct connection* connection = (struct connection*)client;
  const uv_buf_t reply = uv_buf_init((char*)payload, (unsigned)wanted_bytes);
  const int sent = uv_try_write(client, &reply, 1);
  if (sent >= 0 && (size_t)sent == wanted_bytes) return;
  if (sent < 0 && sent != UV_EAGAIN) {
    close_connection(client);
    return;
  }
  const size_t taken = sent < 0 ? 0 : (size_t)sent;
  const uv_buf_t rest = uv_buf_init((char*)payload + taken, (unsigned)(wanted_bytes - taken));
  uv_read_stop(client);
  if (uv_write(&connection->write, client, &rest, 1, on_written) != 0) close_connection(client);
}

static void on_read(uv_stream_t* client, ssize_t received, const uv_buf_t* buffer) {
  (void)buffer;
  struct connection* connection = (struct connection*)client;
  if (received < 0) close_connection(client);
  if (received <= 0) return;
  connection->request_bytes += (size_t)received;
  if (connection->request_bytes < kRequestBytes) return;
  connection->request_bytes = 0;
  const uint64_t wanted_bytes = read_request(connection->request);
  if (wanted_bytes > PENSTOCK_BENCH_BULK_PAYLOAD_BYTES) {
    close_connection(client);
  } else if (wanted_bytes > 0) {
    answer(client, (size_t)wanted_bytes);
  }
}

static void on_connection(uv_stream_t* listener, int status) {
  if (status < 0) {
    fprintf(stderr, "connection: %s\n", uv_strerror(status));
    return;
  }
  struct connection* connection = malloc(sizeof *connection);
  if (connection == NULL) die("malloc");
  connection->request_bytes = 0;
  uv_tcp_init(listener->loop, &connection->tcp);
  uv_stream_t* client = (uv_stream_t*)&connection->tcp;
  if (uv_accept(listener, client) != 0) {
    close_connection(client);
    return;
  }
  uv_tcp_nodelay(&connection->tcp, 1);
  uv_read_start(client, allocate, on_read);
}

int main(void) {
  payload = malloc(PENSTOCK_BENCH_BULK_PAYLOAD_BYTES);
  if (payload == NULL) die("malloc");
  fill_pattern(payload, PENSTOCK_BENCH_BULK_PAYLOAD_BYTES, 0);
  return serve(on_connection, "libuv");
}
