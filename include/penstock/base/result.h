// How an operation that may fail answers: a value, or a std::error_code that says why not.
#pragma once

#include <expected>
#include <system_error>

namespace penstock {

/// A value of type T, or the error that kept us from it. Never holds a zero error code.
template <class T>
using Result = std::expected<T, std::error_code>;

/// Errors that are Penstock's own; everything the kernel says travels as std::system_category().
enum class Errc {
  unknown_backend = 1,   ///< The back-end's name is not one of the known ones.
  bad_address,           ///< The text is no address of a kind Penstock knows.
  needs_resolver,        ///< A host name other than localhost: names wait for the resolver.
  too_many_connections,  ///< The wanted limit does not fit under the descriptor limit.
  already_started,       ///< The object is in use already.
  stopped,               ///< The object has been stopped; it cannot be used again.
  callback_threw,        ///< A user callback threw an exception.
  out_of_loops,          ///< More event loops at a time than the mailbox table has room for.
  self_connected,  ///< A connection attempt met itself: nobody listens there (TCP simultaneous open).
  output_limit,    ///< Output passed ConnectionLimits::output_max.
  input_limit,     ///< Input passed ConnectionLimits::input_max and none of it was consumed.
  memory_limit,    ///< The loops' memory budget is exhausted.
  unstable_connection,  ///< The attempts are used up by connections that ended too soon.
  not_listening,        ///< The inherited descriptor is no listening stream socket.
};

/// The category of Errc; its messages say what to do.
const std::error_category& penstock_category() noexcept;

/// Makes Errc an error code; found by std::error_code itself.
inline std::error_code make_error_code(Errc error) noexcept {
  return {static_cast<int>(error), penstock_category()};
}

/// The error code of an errno value, given positive (ENOENT) or as the kernel seam answers
/// (-ENOENT).
inline std::error_code system_error(int error_number) noexcept {
  return {error_number < 0 ? -error_number : error_number, std::system_category()};
}

/// A failed Result of any type, from an errno value of either sign.
inline std::unexpected<std::error_code> failure(int error_number) noexcept {
  return std::unexpected(system_error(error_number));
}

/// A failed Result of any type, from one of Penstock's own errors.
inline std::unexpected<std::error_code> failure(Errc error) noexcept {
  return std::unexpected(make_error_code(error));
}

}  // namespace penstock

template <>
struct std::is_error_code_enum<penstock::Errc> : std::true_type {};
