// The write path (scenarios W1 to W15), on every back-end.

#include "support/world.h"

namespace penstock::test {
namespace {

class WritePath : public ConformanceTest {};

TEST_P(WritePath, SmallSendsOfOneHandlerLeaveAsOneCall) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [](TcpConnection& peer, InputBuffer& in) {
    in.take();
    for (int i = 0; i < 16; ++i) peer.send("reply ");
  };
  World::Link link = world.connect(record, std::move(callbacks));
  const std::uint64_t sends = world.kernel.calls(Call::send) + world.kernel.calls(Call::sendmsg);
  send_text(linux_kernel(), link.client.get(), "request");
  ASSERT_TRUE(world.run_until([&] { return record->count("write_complete") == 1; }));
  EXPECT_EQ(world.kernel.calls(Call::send) + world.kernel.calls(Call::sendmsg), sends + 1);
  wait_for(linux_kernel(), link.client.get(), POLLIN);
  EXPECT_EQ(receive(linux_kernel(), link.client.get()).text.size(), 16 * 6u);
}

PENSTOCK_ON_EVERY_BACKEND(WritePath);

}  // namespace
}  // namespace penstock::test
