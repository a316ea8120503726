// A light client made of js-waku (@waku/sdk 0.0.36), as another program would use
// it. interop_test.go runs it: it reads the store, subscribes to a content topic,
// and answers what it hears there.
Promise.withResolvers ??= function () { // Node.js before 22 lacks it
  const out = {};
  out.promise = new Promise((resolve, reject) => Object.assign(out, { resolve, reject }));
  return out;
};
const { createLightNode, Protocols } = await import("@waku/sdk");

const [, , address, cluster, contentTopic] = process.argv;
const options = {
  networkConfig: { clusterId: Number(cluster), numShardsInCluster: 1 },
  defaultBootstrap: false,
  numPeersToUse: 1,
  libp2p: { filterMultiaddrs: false, hideWebSocketInfo: true },
};
if (process.env.KITH_YAMUX) {
  const { yamux } = await import("@chainsafe/libp2p-yamux");
  options.libp2p.streamMuxers = [yamux()];
}
const say = (...words) => console.log(words.join(" "));
const show = (m) => Buffer.from(m.payload).toString("hex").slice(0, 16) + " " + m.hashStr;
const node = await createLightNode(options);
await node.start();
await node.dial(address);
await node.waitForPeers([Protocols.LightPush, Protocols.Filter, Protocols.Store], 20000);
say("connected", node.libp2p.getConnections()[0].multiplexer);

const encoder = node.createEncoder({ contentTopic });
const decoder = node.createDecoder({ contentTopic });
for await (const page of node.store.queryGenerator([decoder])) {
  for (const message of await Promise.all(page)) {
    if (message) say("stored", show(message));
  }
}
let first = true;
const ok = await node.filter.subscribe([decoder], async (message) => {
  say("heard", show(message));
  if (!first) return; // what comes back is its own
  first = false;
  const answer = Buffer.from(message.payload);
  answer[0] ^= 0xff;
  const pushed = await node.lightPush.send(encoder, { payload: answer }, { autoRetry: false });
  say("pushed", pushed.successes.length, ...pushed.failures.map((f) => f.error));
});
say("subscribed", ok);

process.stdin.on("data", () => {});
process.stdin.on("end", async () => {
  await node.stop();
  say("stopped");
  process.exit(0);
});
