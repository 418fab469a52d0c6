// A member of a consumer group on kafkajs: prints the value of every record it reads.
//   node kafkajs.js BOOTSTRAP TOPIC GROUP
// Commits and leaves on SIGTERM.
const { Kafka, logLevel } = require("kafkajs");

const [bootstrap, topic, group] = process.argv.slice(2);
const kafka = new Kafka({ clientId: "kafkajs", brokers: bootstrap.split(","), logLevel: logLevel.WARN });
const consumer = kafka.consumer({ groupId: group });

async function main() {
  await consumer.connect();
  await consumer.subscribe({ topics: [topic], fromBeginning: true });
  await consumer.run({
    autoCommitInterval: 1000,
    eachMessage: async ({ message }) => process.stdout.write(message.value + "\n"),
  });
}

process.on("SIGTERM", async () => {
  await consumer.disconnect();
  process.exit(0);
});
main().catch((err) => {
  console.error(err);
  process.exit(1);
});
