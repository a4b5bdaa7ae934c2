/* Echo with libuv, as its guide teaches: the allocation callback mallocs what libuv suggests
 * (64 KiB), every read is answered by one uv_write that owns the buffer, and the end of the stream
 * closes the handle.
 *
 * Nothing bounds the writes that are under way, and closing cancels them.
 */
#include "uv_peer.h"

struct write_request {
  uv_write_t request; /* first: libuv hands out a pointer to it */
  uv_buf_t buffer;
};

static void on_closed(uv_handle_t* handle) { free(handle); }

static void allocate(uv_handle_t* handle, size_t suggested_bytes, uv_buf_t* buffer) {
  (void)handle;
  buffer->base = malloc(suggested_bytes);
  buffer->len = suggested_bytes;
}

static void on_written(uv_write_t* request, int status) {
  (void)status; /* a failed connection is closed by its read callback */
  struct write_request* finished = (struct write_request*)request;
  free(finished->buffer.base);
  free(finished);
}

static void on_read(uv_stream_t* client, ssize_t received, const uv_buf_t* buffer) {
  if (received > 0) {
    struct write_request* request = malloc(sizeof *request);
    if (request == NULL) die("malloc");
    request->buffer = uv_buf_init(buffer->base, (unsigned)received);
    if (uv_write(&request->request, client, &request->buffer, 1, on_written) != 0)
      on_written(&request->request, 0);
    return;
  }
  if (received < 0) uv_close((uv_handle_t*)client, on_closed);
  free(buffer->base);
}

static void on_connection(uv_stream_t* listener, int status) {
  if (status < 0) {
    fprintf(stderr, "connection: %s\n", uv_strerror(status));
    return;
  }
  uv_tcp_t* client = malloc(sizeof *client);
  if (client == NULL) die("malloc");
  uv_tcp_init(listener->loop, client);
  if (uv_accept(listener, (uv_stream_t*)client) != 0) {
    uv_close((uv_handle_t*)client, on_closed);
    return;
  }
  uv_tcp_nodelay(client, 1);
  uv_read_start((uv_stream_t*)client, allocate, on_read);
}

int main(void) { return serve(on_connection, "libuv"); }
