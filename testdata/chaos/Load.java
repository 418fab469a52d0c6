import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;

/**
 * A client of internal/chaos: Load produce|consume BOOTSTRAP TOPIC PARTITIONS NAME RATE BYTES.
 * Ends on SIGTERM; a producer first finishes what it has begun.
 */
public class Load {
    static volatile boolean running = true;
    static volatile boolean done;

    public static void main(String[] a) throws Exception {
        Thread main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            running = false;
            try {
                main.join();
                Runtime.getRuntime().halt(done ? 0 : 1);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }));
        Properties p = new Properties();
        p.put("bootstrap.servers", a[1]);
        if (a[0].equals("produce")) {
            produce(p, a[2], Integer.parseInt(a[3]), a[4], Integer.parseInt(a[5]), Integer.parseInt(a[6]));
        } else {
            consume(p, a[2], Integer.parseInt(a[3]), a[4]);
        }
        done = true;
    }

    static void produce(Properties p, String topic, int partitions, String name, int rate, int size) throws Exception {
        p.put("client.id", "zone=zone-a," + name);
        p.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        p.put("value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        p.put("max.block.ms", "170000");
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(p)) {
            long began = System.nanoTime();
            for (long sent = 0; running; ) {
                if (sent >= (System.nanoTime() - began) / 1e9 * rate) {
                    Thread.sleep(5);
                    continue;
                }
                int partition = (int) (sent % partitions);
                String head = name + " " + partition + " " + sent / partitions + " ";
                String value = head + "x".repeat(Math.max(0, size - head.length()));
                producer.send(new ProducerRecord<>(topic, partition, null, value), (m, e) -> say(
                    e != null ? "E " + e : "A " + value + "\t" + m.partition() + "\t" + m.offset()));
                sent++;
            }
            producer.flush();
        }
    }

    static void consume(Properties p, String topic, int partitions, String name) {
        p.put("client.id", name);
        p.put("client.rack", "zone-a");
        p.put("enable.auto.commit", "false");
        p.put("auto.offset.reset", "none");
        p.put("key.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        p.put("value.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        List<TopicPartition> all = new ArrayList<>();
        for (int i = 0; i < partitions; i++) {
            all.add(new TopicPartition(topic, i));
        }
        try (KafkaConsumer<String, String> consumer = new KafkaConsumer<>(p)) {
            consumer.assign(all);
            consumer.seekToBeginning(all);
            while (running) {
                for (ConsumerRecord<String, String> r : consumer.poll(Duration.ofMillis(100))) {
                    say("R " + r.partition() + "\t" + r.offset());
                }
            }
        }
    }

    static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }
}
