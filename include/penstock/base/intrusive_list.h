// A doubly linked list whose links live inside its elements: no allocation, O(1) removal from the
// middle. Single-threaded. The list never owns its elements.
#pragma once

#include "penstock/base/assert.h"

namespace penstock {

/// Base class of an element, once per list it can be in; `Tag` tells its lists apart.
/// Unlinks itself when destroyed; neither copied nor moved.
template <class Tag>
class ListLink {
 public:
  ListLink() = default;
  ListLink(const ListLink&) = delete;
  ListLink& operator=(const ListLink&) = delete;
  ~ListLink() { unlink(); }

  /// Whether the element is in a list through this link.
  bool linked() const noexcept { return next_ != nullptr; }

  /// Leaves the list; does nothing when in none.
  void unlink() noexcept {
    if (next_ == nullptr) return;
    previous_->next_ = next_;
    next_->previous_ = previous_;
    previous_ = next_ = nullptr;
  }

 private:
  template <class T, class ListTag>
  friend class IntrusiveList;

  ListLink* previous_ = nullptr;
  ListLink* next_ = nullptr;
};

/// List of T, which derives from ListLink<Tag>.
template <class T, class Tag>
class IntrusiveList {
 public:
  IntrusiveList() noexcept { reset(); }
  IntrusiveList(const IntrusiveList&) = delete;
  IntrusiveList& operator=(const IntrusiveList&) = delete;
  /// Elements still linked are let go, unharmed.
  ~IntrusiveList() {
    while (pop_front() != nullptr) {
    }
    root_.previous_ = root_.next_ = nullptr;
  }

  /// Whether no element is linked.
  bool empty() const noexcept { return root_.next_ == &root_; }

  /// Appends an element that is in no list of this tag.
  void push_back(T& element) noexcept {
    ListLink<Tag>& link = element;
    PENSTOCK_ASSERT(!link.linked(), "the element is in a list already");
    link.previous_ = root_.previous_;
    link.next_ = &root_;
    root_.previous_->next_ = &link;
    root_.previous_ = &link;
  }

  /// The first element, or nullptr.
  T* front() noexcept { return element_of(root_.next_); }

  /// Removes and returns the first element, or nullptr.
  T* pop_front() noexcept {
    T* element = front();
    if (element != nullptr) static_cast<ListLink<Tag>*>(element)->unlink();
    return element;
  }

  /// The element behind `element`, or nullptr at the end. `element` must be in this list.
  T* next(T& element) noexcept { return element_of(static_cast<ListLink<Tag>&>(element).next_); }

  /// Takes all elements of `other`, in order, behind our own.
  void splice_back(IntrusiveList& other) noexcept {
    if (other.empty()) return;
    ListLink<Tag>* first = other.root_.next_;
    ListLink<Tag>* last = other.root_.previous_;
    first->previous_ = root_.previous_;
    root_.previous_->next_ = first;
    last->next_ = &root_;
    root_.previous_ = last;
    other.reset();
  }

 private:
  void reset() noexcept { root_.previous_ = root_.next_ = &root_; }

  T* element_of(ListLink<Tag>* link) noexcept {
    return link == &root_ ? nullptr : static_cast<T*>(link);
  }

  ListLink<Tag> root_;
};

}  // namespace penstock
