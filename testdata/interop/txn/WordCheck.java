import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.Future;
import java.util.ArrayList;
import java.util.stream.Collectors;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;

/**
 * Feeds the word count and counts what it made of it.
 *   WordCheck feed BOOTSTRAP IN OUT LINES SECONDS     LINES lines of ten words, spread over SECONDS
 *   WordCheck check BOOTSTRAP IN OUT NAME SECONDS     waits up to SECONDS until all is there: every word must have come with
 *                                                     1, 2, 3 … up to how often it is in the input, each of these once
 */
public class WordCheck {
    static final int PARTITIONS = 4, WORDS = 97;

    public static void main(String[] a) throws Exception {
        if (a[0].equals("feed")) {
            feed(a[1], a[2], a[3], Integer.parseInt(a[4]), Integer.parseInt(a[5]));
        } else {
            verify(a[1], a[2], a[3], a[4], Integer.parseInt(a[5]));
        }
    }

    static Properties base(String bootstrap) {
        Properties p = new Properties();
        p.put("bootstrap.servers", bootstrap);
        return p;
    }

    static void feed(String bootstrap, String in, String out, int lines, int seconds) throws Exception {
        try (Admin admin = Admin.create(base(bootstrap))) {
            admin.createTopics(List.of(new NewTopic(in, PARTITIONS, (short) 1), new NewTopic(out, PARTITIONS, (short) 1))).all().get();
        }
        System.out.println("topics made");
        Properties p = base(bootstrap);
        p.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        p.put("value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        Random random = new Random(7);
        List<Future<?>> sent = new ArrayList<>();
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(p)) {
            long began = System.nanoTime();
            for (int i = 0; i < lines; i++) {
                while (i >= (System.nanoTime() - began) / 1e9 * lines / seconds) {
                    Thread.sleep(5);
                }
                StringBuilder line = new StringBuilder();
                for (int j = 0; j < 10; j++) {
                    line.append(j == 0 ? "" : " ").append("word").append(random.nextInt(WORDS));
                }
                sent.add(producer.send(new ProducerRecord<>(in, i % PARTITIONS, null, line.toString())));
            }
        }
        for (Future<?> f : sent) {
            f.get();
        }
    }

    static KafkaConsumer<String, byte[]> consumer(String bootstrap, String topic) {
        Properties p = base(bootstrap);
        p.put("key.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        p.put("value.deserializer", "org.apache.kafka.common.serialization.ByteArrayDeserializer");
        p.put("isolation.level", "read_committed");
        KafkaConsumer<String, byte[]> c = new KafkaConsumer<>(p);
        List<TopicPartition> parts = c.partitionsFor(topic).stream().map(i -> new TopicPartition(topic, i.partition()))
            .collect(Collectors.toList());
        c.assign(parts);
        c.seekToBeginning(parts);
        return c;
    }

    static void verify(String bootstrap, String in, String out, String name, int seconds) {
        Map<String, Long> want = new TreeMap<>();
        long words = 0;
        try (KafkaConsumer<String, byte[]> c = consumer(bootstrap, in)) {
            Map<TopicPartition, Long> ends = c.endOffsets(c.assignment());
            while (c.assignment().stream().anyMatch(p -> c.position(p) < ends.get(p))) {
                for (ConsumerRecord<String, byte[]> r : c.poll(Duration.ofMillis(200))) {
                    for (String w : new String(r.value()).split(" ")) {
                        want.merge(w, 1L, Long::sum);
                        words++;
                    }
                }
            }
        }
        Map<String, Map<Long, Integer>> got = new TreeMap<>();
        long found = 0, deadline = System.currentTimeMillis() + seconds * 1000L, quietUntil = Long.MAX_VALUE;
        try (KafkaConsumer<String, byte[]> c = consumer(bootstrap, out)) {
            // A while longer than until all are there: there may be one too many.
            while (System.currentTimeMillis() < Math.min(deadline, quietUntil)) {
                for (ConsumerRecord<String, byte[]> r : c.poll(Duration.ofMillis(200))) {
                    got.computeIfAbsent(r.key(), k -> new TreeMap<>()).merge(java.nio.ByteBuffer.wrap(r.value()).getLong(), 1, Integer::sum);
                    found++;
                }
                if (found >= words && quietUntil == Long.MAX_VALUE) {
                    quietUntil = System.currentTimeMillis() + 5_000;
                }
            }
        }
        long missing = 0, doubled = 0, wrong = 0;
        for (Map.Entry<String, Long> w : want.entrySet()) {
            Map<Long, Integer> counts = got.getOrDefault(w.getKey(), Map.of());
            for (long n = 1; n <= w.getValue(); n++) {
                int times = counts.getOrDefault(n, 0);
                missing += times == 0 ? 1 : 0;
                doubled += Math.max(0, times - 1);
            }
            wrong += counts.keySet().stream().filter(n -> n < 1 || n > w.getValue()).count();
        }
        wrong += got.keySet().stream().filter(w -> !want.containsKey(w)).count();
        String told = words + " words in, " + found + " counts out, missing " + missing + ", doubled " + doubled + ", wrong " + wrong;
        System.out.println((missing + doubled + wrong == 0 && words > 0 ? "ok    " : "FAIL  ") + name + ": " + told);
    }
}
