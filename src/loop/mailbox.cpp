#include "penstock/loop/mailbox.h"

#include <array>
#include <memory>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/io/io_backend.h"
#include "penstock/loop/mailbox_hooks.h"

namespace penstock {
namespace {

using mailbox_hooks::Point;

// All mailboxes there ever were. Entries are added and never removed; `free` holds those without a
// loop.
struct MailboxTable {
  std::mutex mutex;
  std::array<std::atomic<Mailbox*>, Mailbox::kLoopsMax> entries{};
  std::uint32_t size = 0;
  std::vector<Mailbox*> free;
};

// Never destroyed: a handle may be used while the process ends.
MailboxTable& table() {
  alignas(MailboxTable) static std::byte storage[sizeof(MailboxTable)];
  static MailboxTable& instance = *new (storage) MailboxTable;
  return instance;
}

}  // namespace

Result<Mailbox*> Mailbox::open(IoBackend& backend, std::size_t charge_max,
                               CountedPtr<MemoryBudget> budget) {
  MailboxTable& all = table();
  const std::lock_guard table_lock(all.mutex);
  Mailbox* mailbox = nullptr;
  if (!all.free.empty()) {
    mailbox = all.free.back();
    all.free.pop_back();
  } else {
    if (all.size == kLoopsMax) return failure(Errc::out_of_loops);
    all.free.reserve(all.size + 1);  // so that retire() need not allocate
    mailbox = new Mailbox;
    mailbox->id_.slot = all.size;
    all.entries[all.size++].store(mailbox, std::memory_order_release);
  }
  const std::lock_guard lock(mailbox->mutex_);
  if (mailbox->id_.generation == 0) mailbox->id_.generation = 1;
  mailbox->backend_ = &backend;
  mailbox->charge_max_ = charge_max;
  mailbox->budget_ = std::move(budget);
  mailbox->has_mail_.store(false);
  mailbox->sleeping_.store(false);
  mailbox->wakeups_written_.store(0);
  return mailbox;
}

std::vector<Mailbox::Item> Mailbox::close() {
  std::vector<Item> left;
  const std::lock_guard lock(mutex_);
  backend_ = nullptr;
  budget_ = {};
  left.swap(items_);
  has_mail_.store(false);
  return left;
}

void Mailbox::retire() {
  {
    const std::lock_guard lock(mutex_);
    PENSTOCK_ASSERT(backend_ == nullptr && items_.empty(), "close() comes before retire()");
    charged_ = taken_charge_ = 0;
    if (++id_.generation == 0) id_.generation = 1;  // old names end here
  }
  const std::lock_guard table_lock(table().mutex);
  table().free.push_back(this);
}

CountedPtr<MemoryBudget> Mailbox::budget_of(LoopId id) {
  if (id.slot >= kLoopsMax) return {};
  Mailbox* mailbox = table().entries[id.slot].load(std::memory_order_acquire);
  if (mailbox == nullptr) return {};
  const std::lock_guard lock(mailbox->mutex_);
  return mailbox->id_ == id ? mailbox->budget_ : CountedPtr<MemoryBudget>();
}

PostResult Mailbox::post(LoopId id, Task&& task, std::size_t charge) {
  if (id.slot >= kLoopsMax) return PostResult::closed;
  Mailbox* mailbox = table().entries[id.slot].load(std::memory_order_acquire);
  if (mailbox == nullptr) return PostResult::closed;
  mailbox_hooks::at(Point::push);
  const PostResult result = mailbox->push(id, std::move(task), charge);
  if (result == PostResult::posted) {
    mailbox_hooks::at(Point::wake);
    if (mailbox->sleeping_.load()) mailbox->wake(id);  // rule 3
  }
  return result;
}

PostResult Mailbox::push(LoopId id, Task&& task, std::size_t charge) {
  const std::lock_guard lock(mutex_);
  if (id_ != id || backend_ == nullptr) return PostResult::closed;
  if (charge != 0 && (charge > charge_max_ || charged_ > charge_max_ - charge)) {
    return PostResult::full;
  }
  items_.emplace_back(std::move(task), charge);  // throws, if at all, before it moves
  charged_ += charge;
  has_mail_.store(true);  // rule 3
  return PostResult::posted;
}

void Mailbox::wake(LoopId id) noexcept {
  const std::lock_guard lock(mutex_);
  if (id_ != id || backend_ == nullptr || !sleeping_.exchange(false)) return;
  wakeups_written_.fetch_add(1, std::memory_order_relaxed);
  backend_->wake();
}

void Mailbox::take(std::vector<Item>& items) {
  PENSTOCK_ASSERT(items.empty() && taken_charge_ == 0,
                  "the mail taken before has not been dealt with");
  mailbox_hooks::at(Point::pop);
  const std::lock_guard lock(mutex_);
  taken_charge_ = charged_;
  items.swap(items_);
  has_mail_.store(false, std::memory_order_relaxed);
}

void Mailbox::done() noexcept {
  if (taken_charge_ == 0) return;
  const std::lock_guard lock(mutex_);
  charged_ -= std::exchange(taken_charge_, 0);
}

bool Mailbox::prepare_to_sleep() noexcept {
  mailbox_hooks::at(Point::set_sleeping);
  sleeping_.store(true);  // rule 3
  if (!has_mail_.load()) return true;
  awake();
  return false;
}

void Mailbox::awake() noexcept {
  mailbox_hooks::at(Point::clear_sleeping);
  sleeping_.store(false, std::memory_order_relaxed);
}

}  // namespace penstock
