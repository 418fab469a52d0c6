import java.util.Arrays;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Produced;

/**
 * Kafka Streams' word count, exactly_once_v2: WordCount BOOTSTRAP APPLICATION IN OUT STATE-FOLDER. Nothing is cached, so that
 * every word of the input makes one record of the output: the word and how often it came so far. Ends on SIGTERM.
 */
public class WordCount {
    public static void main(String[] a) throws Exception {
        Properties p = new Properties();
        p.put("bootstrap.servers", a[0]);
        p.put("application.id", a[1]);
        p.put("state.dir", a[4]);
        p.put("processing.guarantee", "exactly_once_v2");
        p.put("replication.factor", "1");
        p.put("num.stream.threads", "2");
        p.put("statestore.cache.max.bytes", "0");
        p.put("default.key.serde", Serdes.StringSerde.class.getName());
        p.put("default.value.serde", Serdes.StringSerde.class.getName());
        p.put("consumer.auto.offset.reset", "earliest");
        p.put("consumer.max.poll.records", "100");
        p.put("consumer.session.timeout.ms", "10000");
        p.put("producer.transaction.timeout.ms", "10000");
        StreamsBuilder b = new StreamsBuilder();
        b.<String, String>stream(a[2]).flatMapValues(line -> Arrays.asList(line.split(" ")))
            .groupBy((key, word) -> word, Grouped.as("words")).count().toStream()
            .to(a[3], Produced.with(Serdes.String(), Serdes.Long()));
        KafkaStreams s = new KafkaStreams(b.build(), p);
        s.setUncaughtExceptionHandler(e -> {
            System.out.println("replace a thread after " + e);
            return StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse.REPLACE_THREAD;
        });
        s.setStateListener((now, before) -> System.out.println(before + " -> " + now));
        Runtime.getRuntime().addShutdownHook(new Thread(s::close));
        s.start();
    }
}
