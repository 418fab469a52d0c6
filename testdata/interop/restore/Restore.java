import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.processor.StateRestoreListener;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;

/**
 * What applications that keep their state in compacted topics do, for scripts/restore-interop.sh:
 *   streams BOOTSTRAP APPLICATION STATE-DIR INPUT GUARANTEE MARK   runs until the key "mark" has the value MARK in the store,
 *                                                    prints the store, then "restored N" with the records it was restored from
 *   write BOOTSTRAP TOPIC KEYS ROUNDS MARK       writes keys in transactions, a third of which abort, then the mark, then aborts one more
 *   input BOOTSTRAP TOPIC KEYS ROUNDS MARK       writes keys, some "-" (delete), then the mark; no transactions
 *   table BOOTSTRAP TOPIC ISOLATION              reads to the end offset that the cluster states, prints what is left by key
 */
public class Restore {
  static final Duration LIMIT = Duration.ofSeconds(120);

  public static void main(String[] a) throws Exception {
    switch (a[0]) {
      case "streams" -> streams(a[1], a[2], a[3], a[4], a[5], a[6]);
      case "write" -> write(a[1], a[2], Integer.parseInt(a[3]), Integer.parseInt(a[4]), a[5], true);
      case "input" -> write(a[1], a[2], Integer.parseInt(a[3]), Integer.parseInt(a[4]), a[5], false);
      case "table" -> table(a[1], a[2], a[3]);
      default -> throw new IllegalArgumentException(a[0]);
    }
  }

  static void print(Map<String, String> content) {
    content.forEach((k, v) -> System.out.println(k + "=" + v));
  }

  static void streams(String bootstrap, String application, String dir, String input, String guarantee, String mark) throws Exception {
    Properties p = new Properties();
    p.put(StreamsConfig.APPLICATION_ID_CONFIG, application);
    p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
    p.put(StreamsConfig.STATE_DIR_CONFIG, dir);
    p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, guarantee);
    p.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 200);
    p.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
    p.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    p.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
    p.put(StreamsConfig.consumerPrefix(ConsumerConfig.SESSION_TIMEOUT_MS_CONFIG), 6000); // it does not leave when it is closed
    p.put(StreamsConfig.consumerPrefix(ConsumerConfig.HEARTBEAT_INTERVAL_MS_CONFIG), 2000);
    p.put(StreamsConfig.topicPrefix("delete.retention.ms"), "0");
    p.put(StreamsConfig.topicPrefix("min.cleanable.dirty.ratio"), "0.01");
    StreamsBuilder b = new StreamsBuilder();
    // The values of a key are put together, up to a length; "-" deletes the key.
    b.stream(input, Consumed.with(Serdes.String(), Serdes.String())).groupByKey().aggregate(() -> "",
        (key, value, sum) -> {
          if (value.equals("-")) return null;
          String all = sum == null || key.equals("mark") ? value : sum + "," + value;
          return all.length() > 100 ? all.substring(all.length() - 100) : all;
        },
        Materialized.<String, String, KeyValueStore<Bytes, byte[]>>as("values").withKeySerde(Serdes.String()).withValueSerde(Serdes.String()));
    KafkaStreams s = new KafkaStreams(b.build(), p);
    AtomicLong restored = new AtomicLong();
    CountDownLatch running = new CountDownLatch(1);
    s.setGlobalStateRestoreListener(new StateRestoreListener() {
      public void onRestoreStart(TopicPartition tp, String store, long from, long to) {}
      public void onBatchRestored(TopicPartition tp, String store, long end, long n) {}
      public void onRestoreEnd(TopicPartition tp, String store, long n) { restored.addAndGet(n); }
    });
    s.setStateListener((now, before) -> { if (now == KafkaStreams.State.RUNNING) running.countDown(); });
    s.start();
    if (!running.await(LIMIT.toSeconds(), TimeUnit.SECONDS)) throw new IllegalStateException("not running: " + s.state());
    var store = s.store(StoreQueryParameters.fromNameAndType("values", QueryableStoreTypes.<String, String>keyValueStore()));
    long end = System.nanoTime() + LIMIT.toNanos();
    while (!mark.equals(store.get("mark"))) {
      if (System.nanoTime() > end) throw new IllegalStateException("the mark " + mark + " is not there, but " + store.get("mark"));
      Thread.sleep(50);
    }
    Thread.sleep(1000); // for a commit
    Map<String, String> content = new TreeMap<>();
    try (var all = store.all()) {
      all.forEachRemaining(kv -> content.put(kv.key, kv.value));
    }
    s.close(LIMIT);
    print(content);
    System.out.println("restored " + restored.get());
  }

  static void write(String bootstrap, String topic, int keys, int rounds, String mark, boolean transactions) throws Exception {
    Properties p = new Properties();
    p.put(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
    p.put(ProducerConfig.LINGER_MS_CONFIG, 5);
    if (transactions) p.put(ProducerConfig.TRANSACTIONAL_ID_CONFIG, "write-" + topic);
    Map<String, String> content = new TreeMap<>();
    try (var producer = new KafkaProducer<>(p, new StringSerializer(), new StringSerializer())) {
      if (transactions) producer.initTransactions();
      for (int round = 0; round < rounds; round++) {
        boolean abort = transactions && round % 3 == 1;
        if (transactions) producer.beginTransaction();
        for (int k = 0; k < keys; k++) {
          if ((k + round) % 4 == 0) continue;
          String key = "k" + k, value = abort ? "aborted" : mark + "-" + round;
          if ((k * 7 + round) % 11 == 0) value = transactions ? null : "-";
          producer.send(new ProducerRecord<>(topic, key, value));
          if (!abort) content.put(key, String.valueOf(value));
        }
        if (abort) producer.abortTransaction();
        else if (transactions) producer.commitTransaction();
      }
      if (transactions) producer.beginTransaction();
      producer.send(new ProducerRecord<>(topic, "mark", mark));
      content.put("mark", mark);
      if (transactions) {
        producer.commitTransaction();
        producer.beginTransaction();
        producer.send(new ProducerRecord<>(topic, "mark", "aborted"));
        producer.flush();
        producer.abortTransaction();
      }
    }
    content.values().removeIf(v -> v.equals("null"));
    print(content);
  }

  static void table(String bootstrap, String topic, String isolation) {
    Properties p = new Properties();
    p.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
    p.put(ConsumerConfig.ISOLATION_LEVEL_CONFIG, isolation);
    Map<String, String> content = new TreeMap<>();
    long records = 0, last = 0;
    try (var c = new KafkaConsumer<>(p, new StringDeserializer(), new StringDeserializer())) {
      List<TopicPartition> parts = new ArrayList<>();
      c.partitionsFor(topic).forEach(i -> parts.add(new TopicPartition(topic, i.partition())));
      c.assign(parts);
      c.seekToBeginning(parts);
      // As Streams and Connect do: end offsets of an uncommitted reader, and the position has to get there.
      Properties u = (Properties) p.clone();
      u.put(ConsumerConfig.ISOLATION_LEVEL_CONFIG, "read_uncommitted");
      Map<TopicPartition, Long> ends;
      try (var other = new KafkaConsumer<>(u, new StringDeserializer(), new StringDeserializer())) {
        ends = other.endOffsets(parts);
      }
      long limit = System.nanoTime() + LIMIT.toNanos();
      while (parts.stream().anyMatch(tp -> c.position(tp) < ends.get(tp))) {
        if (System.nanoTime() > limit) throw new IllegalStateException("positions do not reach " + ends);
        for (ConsumerRecord<String, String> r : c.poll(Duration.ofMillis(500))) {
          records++;
          if (r.value() == null) content.remove(r.key());
          else content.put(r.key(), r.value());
        }
      }
      for (long e : ends.values()) last += e;
    }
    print(content);
    System.err.println("read " + records + " of " + last);
  }
}
