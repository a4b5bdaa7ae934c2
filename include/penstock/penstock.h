// Everything a program needs; include this or the single headers.
#pragma once

#include "penstock/base/clock.h"
#include "penstock/base/latency_histogram.h"
#include "penstock/base/log.h"
#include "penstock/base/result.h"
#include "penstock/bytes/input_buffer.h"
#include "penstock/bytes/shared_bytes.h"
#include "penstock/io/io_backend.h"
#include "penstock/loop/event_loop.h"
#include "penstock/loop/loop_group.h"
#include "penstock/os/socket_address.h"
#include "penstock/tcp/adopt.h"
#include "penstock/tcp/behaviour.h"
#include "penstock/tcp/client.h"
#include "penstock/tcp/connection.h"
#include "penstock/tcp/connection_handle.h"
#include "penstock/tcp/server.h"
