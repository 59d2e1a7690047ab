// Reads chats' streams as the AI SDK's useChat does, and prints what becomes of them as JSON.

import { DefaultChatTransport, readUIMessageStream } from "ai";

async function read(url) {
  const told = { versions: [], errors: [], headers: null, kinds: [], reason: null };
  const transport = new DefaultChatTransport({
    api: url,
    fetch: async (...request) => {
      const response = await fetch(...request);
      told.headers = Object.fromEntries(response.headers);
      return response;
    },
  });
  const question = { id: "1", role: "user", parts: [{ type: "text", text: "why" }] };
  const chunks = await transport.sendMessages({
    trigger: "submit-message",
    chatId: "chat",
    messages: [question],
    abortSignal: undefined,
  });
  const watched = chunks.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        told.kinds.push(chunk.type);
        if (chunk.type === "finish") told.reason = chunk.finishReason;
        controller.enqueue(chunk);
      },
    }),
  );
  const messages = readUIMessageStream({
    stream: watched,
    onError: (error) => told.errors.push(String(error)),
    terminateOnError: false,
  });
  for await (const message of messages) told.versions.push(structuredClone(message));
  return told;
}

console.log(JSON.stringify(await Promise.all(process.argv.slice(2).map(read))));
