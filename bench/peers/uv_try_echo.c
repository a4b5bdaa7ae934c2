/* Echo with libuv, by somebody who knows it well: one read buffer for all connections (libuv reads
 * into it and calls back before it reads again), uv_try_write first, and a uv_write of a copy of
 * what the kernel did not take. While that is under way the connection is not read; so a peer that
 * does not read costs at most 64 KiB, and the end of the stream is seen after everything was sent.
 */
#include "uv_peer.h"

struct connection {
  uv_tcp_t tcp; /* first: libuv hands out a pointer to it */
  uv_write_t write;
  char* rest;
};

static char read_buffer[kReadBytesMax];

static void on_read(uv_stream_t* client, ssize_t received, const uv_buf_t* buffer);

static void on_closed(uv_handle_t* handle) {
  struct connection* connection = (struct connection*)handle;
  free(connection->rest);
  free(connection);
}

static void close_connection(uv_stream_t* client) {
  if (!uv_is_closing((uv_handle_t*)client)) uv_close((uv_handle_t*)client, on_closed);
}

static void allocate(uv_handle_t* handle, size_t suggested_bytes, uv_buf_t* buffer) {
  (void)handle;
  (void)suggested_bytes;
  *buffer = uv_buf_init(read_buffer, sizeof read_buffer);
}

static void on_written(uv_write_t* request, int status) {
  uv_stream_t* client = request->handle;
  struct connection* connection = (struct connection*)client;
  free(connection->rest);
  connection->rest = NULL;
  if (status == 0) {
    uv_read_start(client, allocate, on_read);
  } else {
    close_connection(client);
  }
}

static void write_rest(uv_stream_t* client, const char* data, size_t bytes) {
  struct connection* connection = (struct connection*)client;
  connection->rest = malloc(bytes);
  if (connection->rest == NULL) die("malloc");
  memcpy(connection->rest, data, bytes);
  const uv_buf_t buffer = uv_buf_init(connection->rest, (unsigned)bytes);
  uv_read_stop(client);
  if (uv_write(&connection->write, client, &buffer, 1, on_written) != 0) close_connection(client);
}

static void on_read(uv_stream_t* client, ssize_t received, const uv_buf_t* buffer) {
  if (received < 0) close_connection(client);
  if (received <= 0) return;
  const uv_buf_t data = uv_buf_init(buffer->base, (unsigned)received);
  const int sent = uv_try_write(client, &data, 1);
  if (sent == received) return;
  if (sent < 0 && sent != UV_EAGAIN) {
    close_connection(client);
    return;
  }
  const size_t taken = sent < 0 ? 0 : (size_t)sent;
  write_rest(client, data.base + taken, (size_t)received - taken);
}

static void on_connection(uv_stream_t* listener, int status) {
  if (status < 0) {
    fprintf(stderr, "connection: %s\n", uv_strerror(status));
    return;
  }
  struct connection* connection = malloc(sizeof *connection);
  if (connection == NULL) die("malloc");
  connection->rest = NULL;
  uv_tcp_init(listener->loop, &connection->tcp);
  uv_stream_t* client = (uv_stream_t*)&connection->tcp;
  if (uv_accept(listener, client) != 0) {
    close_connection(client);
    return;
  }
  uv_tcp_nodelay(&connection->tcp, 1);
  uv_read_start(client, allocate, on_read);
}

int main(void) { return serve(on_connection, "libuv"); }
