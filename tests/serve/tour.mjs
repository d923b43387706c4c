// A tour of the server with the official Node client. Prints one JSON object; a failed step ends it with an error.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "你好, what does it do?" }];
const told = {};

const models = [];
for await (const model of client.models.list()) models.push(model.id);
told.models = models;

const chat = await client.chat.completions.create({
  model: "tiny", messages, temperature: 0, max_tokens: 9, n: 2, logprobs: true, top_logprobs: 2,
});
assert.equal(chat.choices.length, 2);
assert.equal(chat.choices[0].logprobs.content.length, 9);
told.chat = chat.choices[0].message.content;

let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({
  model: "tiny", messages, temperature: 0, max_tokens: 9, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, told.chat);
assert.equal(usage.completion_tokens, 9);

const schema = {
  type: "object", properties: { city: { enum: ["北京", "Paris"] } }, required: ["city"], additionalProperties: false,
};
const formed = await client.chat.completions.create({
  model: "hermes", messages, max_tokens: 200,
  response_format: { type: "json_schema", json_schema: { name: "answer", schema, strict: true } },
});
told.city = JSON.parse(formed.choices[0].message.content).city;

const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];
const called = await client.chat.completions.create({
  model: "hermes", messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 300,
});
told.tool = called.choices[0].message.tool_calls[0].function.name;
assert.equal(called.choices[0].finish_reason, "tool_calls");

const text = await client.completions.create({ model: "tiny", prompt: "hello", echo: true, max_tokens: 4, logprobs: 1 });
assert.equal(text.choices[0].logprobs.token_logprobs[0], null);

const vectors = await client.embeddings.create({ model: "tiny", input: ["hello", "世界"] });
told.dimensions = vectors.data.map((one) => one.embedding.length);

const response = await client.responses.create({ model: "tiny", input: "hello", max_output_tokens: 6, temperature: 0 });
let pieces = "";
const events = await client.responses.create({
  model: "tiny", input: "hello", max_output_tokens: 6, temperature: 0, stream: true,
});
for await (const event of events) if (event.type === "response.output_text.delta") pieces += event.delta;
assert.equal(pieces, response.output_text);

try {
  await client.chat.completions.create({ model: "tiny", messages, temperature: -1 });
  assert.fail("a negative temperature was taken");
} catch (error) {
  assert.ok(error instanceof OpenAI.BadRequestError, String(error));
  told.refused = error.param;
}
console.log(JSON.stringify(told));
