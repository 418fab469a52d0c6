import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.TransactionDescription;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.InvalidProducerEpochException;
import org.apache.kafka.common.errors.ProducerFencedException;

/**
 * Kafka's own transactional producer: Txn BOOTSTRAP PREFIX original|kip890. It prints "ok NAME" or "FAIL NAME: WHY" for
 * everything that it checks.
 */
public class Txn {
    static final int PARTITIONS = 3;
    static String bootstrap, prefix, protocol;

    public static void main(String[] a) throws Exception {
        bootstrap = a[0];
        prefix = a[1] + "-java-" + a[2];
        protocol = a[2];
        try (Admin admin = Admin.create(base())) {
            admin.createTopics(List.of("a", "b", "in", "out", "fenced").stream()
                .map(t -> new NewTopic(prefix + "-" + t, PARTITIONS, (short) 1)).collect(Collectors.toList())).all().get();
            commitsAndAborts(admin);
            fencing();
            consumeModifyProduce(admin);
            timeout(admin);
        }
    }

    static void check(String name, Object want, Object got) {
        String what = "Java " + protocol + ": " + name;
        System.out.println(want.equals(got) ? "ok    " + what : "FAIL  " + what + ": want " + want + ", got " + got);
    }

    static Properties base() {
        Properties p = new Properties();
        p.put("bootstrap.servers", bootstrap);
        return p;
    }

    static KafkaProducer<String, String> producer(String id, int timeoutMs) {
        Properties p = base();
        p.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        p.put("value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        p.put("transactional.id", prefix + "-" + id);
        p.put("transaction.timeout.ms", String.valueOf(timeoutMs));
        return new KafkaProducer<>(p);
    }

    static KafkaConsumer<String, String> consumer(String isolation, String group) {
        Properties p = base();
        p.put("key.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        p.put("value.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        p.put("isolation.level", isolation);
        p.put("auto.offset.reset", "earliest");
        p.put("enable.auto.commit", "false");
        p.put("max.poll.records", "40");
        if (group != null) {
            p.put("group.id", group);
        }
        return new KafkaConsumer<>(p);
    }

    /** How often each value comes, up to the end that the isolation level shows. */
    static Map<String, Integer> read(String topic, String isolation) {
        Map<String, Integer> seen = new TreeMap<>();
        try (KafkaConsumer<String, String> c = consumer(isolation, null)) {
            List<TopicPartition> parts = IntStream.range(0, PARTITIONS).mapToObj(i -> new TopicPartition(prefix + "-" + topic, i))
                .collect(Collectors.toList());
            c.assign(parts);
            c.seekToBeginning(parts);
            Map<TopicPartition, Long> ends = c.endOffsets(parts);
            long deadline = System.currentTimeMillis() + 60_000;
            while (parts.stream().anyMatch(p -> c.position(p) < ends.get(p))) {
                if (System.currentTimeMillis() > deadline) {
                    throw new IllegalStateException("not read to the end " + ends + " within a minute");
                }
                c.poll(Duration.ofMillis(200)).forEach(r -> seen.merge(r.value(), 1, Integer::sum));
            }
        }
        return seen;
    }

    static TransactionDescription describe(Admin admin, String id) throws Exception {
        return admin.describeTransactions(List.of(prefix + "-" + id)).description(prefix + "-" + id).get();
    }

    static void commitsAndAborts(Admin admin) throws Exception {
        final int transactions = 30;
        Map<String, Integer> committed = new TreeMap<>(), all = new TreeMap<>();
        try (KafkaProducer<String, String> p = producer("w", 60_000)) {
            p.initTransactions();
            int first = describe(admin, "w").producerEpoch();
            for (int n = 0; n < transactions; n++) {
                p.beginTransaction();
                for (int i = 0; i < 20; i++) {
                    String value = n + "/" + i;
                    p.send(new ProducerRecord<>(prefix + (i % 2 == 0 ? "-a" : "-b"), i % PARTITIONS, null, value));
                    all.put(value, 1);
                    if (n % 3 != 1) {
                        committed.put(value, 1);
                    }
                }
                if (n % 3 == 1) {
                    p.flush();
                    p.abortTransaction();
                } else {
                    p.commitTransaction();
                }
            }
            // KIP-890 moves the epoch with every end. (The original client moves it too, after an abort that followed an error.)
            check("epoch after " + transactions + " transactions", first + (protocol.equals("kip890") ? transactions : 0),
                describe(admin, "w").producerEpoch());
        }
        Map<String, Integer> got = read("a", "read_committed");
        got.putAll(read("b", "read_committed"));
        check("read_committed sees every committed record once, no aborted one", committed, got);
        got = read("a", "read_uncommitted");
        got.putAll(read("b", "read_uncommitted"));
        check("read_uncommitted sees all", all, got);
    }

    static void fencing() {
        try (KafkaProducer<String, String> first = producer("f", 60_000); KafkaProducer<String, String> second = producer("f", 60_000)) {
            first.initTransactions();
            first.beginTransaction();
            first.send(new ProducerRecord<>(prefix + "-fenced", 0, null, "of the first"));
            first.flush();
            second.initTransactions();
            String caught = "nothing";
            try {
                first.send(new ProducerRecord<>(prefix + "-fenced", 1, null, "zombie"));
                first.commitTransaction();
            } catch (ProducerFencedException | InvalidProducerEpochException e) {
                caught = "fenced";
            } catch (KafkaException e) {
                caught = e.getCause() instanceof ProducerFencedException || e.getCause() instanceof InvalidProducerEpochException
                    ? "fenced" : e.toString();
            }
            check("the older instance", "fenced", caught);
            second.beginTransaction();
            second.send(new ProducerRecord<>(prefix + "-fenced", 2, null, "of the second"));
            second.commitTransaction();
            first.close(Duration.ZERO);
        }
        check("a fenced transaction is aborted", Map.of("of the second", 1), read("fenced", "read_committed"));
    }

    /** Exactly once from one topic to the other, with aborts after which it goes back to the committed offsets. */
    static void consumeModifyProduce(Admin admin) throws Exception {
        final int records = 600;
        Map<String, Integer> want = new TreeMap<>();
        try (KafkaProducer<String, String> p = producer("feed", 60_000)) {
            p.initTransactions();
            p.beginTransaction();
            for (int i = 0; i < records; i++) {
                p.send(new ProducerRecord<>(prefix + "-in", i % PARTITIONS, null, "v" + i));
                want.put("done v" + i, 1);
            }
            p.commitTransaction();
        }
        String group = prefix + "-etl";
        try (KafkaProducer<String, String> p = producer("etl", 60_000); KafkaConsumer<String, String> c = consumer("read_committed", group)) {
            p.initTransactions();
            c.subscribe(List.of(prefix + "-in"));
            long deadline = System.currentTimeMillis() + 60_000;
            for (int done = 0, round = 0; done < records && System.currentTimeMillis() < deadline; ) {
                ConsumerRecords<String, String> in = c.poll(Duration.ofMillis(500));
                if (in.isEmpty()) {
                    continue;
                }
                p.beginTransaction();
                Map<TopicPartition, OffsetAndMetadata> next = new HashMap<>();
                for (ConsumerRecord<String, String> r : in) {
                    p.send(new ProducerRecord<>(prefix + "-out", r.partition(), null, "done " + r.value()));
                    next.put(new TopicPartition(r.topic(), r.partition()), new OffsetAndMetadata(r.offset() + 1));
                }
                p.sendOffsetsToTransaction(next, c.groupMetadata());
                if (round++ % 3 == 1) {
                    p.abortTransaction();
                    Map<TopicPartition, OffsetAndMetadata> back = c.committed(c.assignment());
                    for (TopicPartition t : c.assignment()) {
                        c.seek(t, back.get(t) == null ? 0 : back.get(t).offset());
                    }
                } else {
                    p.commitTransaction();
                    done += in.count();
                }
            }
        }
        check("consume-modify-produce with aborts: exactly once", want, read("out", "read_committed"));
        long sum = 0;
        for (OffsetAndMetadata o : admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().values()) {
            sum += o.offset();
        }
        // Each input partition is a third of the records; the marker behind them is read over or not.
        check("its committed offsets", true, sum >= records && sum <= records + PARTITIONS);
    }

    /** A transaction that nobody ends is aborted, and readers go on. */
    static void timeout(Admin admin) throws Exception {
        try (KafkaProducer<String, String> p = producer("slow", 1_000)) {
            p.initTransactions();
            p.beginTransaction();
            p.send(new ProducerRecord<>(prefix + "-fenced", 1, null, "too late"));
            p.flush();
            long deadline = System.currentTimeMillis() + 40_000;
            String state = "";
            while (!state.equals("CompleteAbort") && System.currentTimeMillis() < deadline) {
                Thread.sleep(200);
                state = describe(admin, "slow").state().toString();
            }
            check("a transaction that timed out", "CompleteAbort", state);
            String caught = "nothing";
            try {
                p.send(new ProducerRecord<>(prefix + "-fenced", 1, null, "still later"));
                p.commitTransaction();
            } catch (KafkaException e) {
                caught = "an error";
            }
            check("its producer's commit", "an error", caught);
            p.close(Duration.ZERO);
        }
        check("nothing of it is read", Map.of("of the second", 1), read("fenced", "read_committed"));
    }
}
