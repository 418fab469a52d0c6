"""librdkafka's transactional producer.
   txn.py BOOTSTRAP PREFIX             prints "ok NAME" or "FAIL NAME: WHY" for what it checks
   txn.py BOOTSTRAP ID open TOPIC      opens a transaction in partition 0 of TOPIC and leaves it open until it is killed
"""
import sys
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition, libversion
from confluent_kafka.admin import AdminClient, NewTopic

BOOTSTRAP, PREFIX = sys.argv[1], sys.argv[2] + "-rdkafka"
PARTITIONS = 3
LIMIT = 60  # seconds for each thing


def check(name, want, got):
    what = f"librdkafka {libversion()[0]}: {name}"
    print(f"ok    {what}" if want == got else f"FAIL  {what}: want {str(want)[:200]}, got {str(got)[:200]}", flush=True)


def producer(name, **more):
    return Producer({"bootstrap.servers": BOOTSTRAP, "transactional.id": f"{PREFIX}-{name}", **more})


def consumer(isolation, group):
    return Consumer({
        "bootstrap.servers": BOOTSTRAP, "group.id": f"{PREFIX}-{group}", "isolation.level": isolation,
        "auto.offset.reset": "earliest", "enable.auto.commit": False, "enable.partition.eof": True,
    })


def read(topic, isolation):
    """How often each value comes, up to the end that the isolation level shows."""
    c = consumer(isolation, "none")
    c.assign([TopicPartition(f"{PREFIX}-{topic}", p, 0) for p in range(PARTITIONS)])
    seen, ended, deadline = {}, set(), time.time() + LIMIT
    while len(ended) < PARTITIONS:
        if time.time() > deadline:
            raise RuntimeError("not read to the end")
        m = c.poll(0.2)
        if m is None:
            continue
        if m.error():
            ended.add(m.partition())  # the end; other errors would show in what is missing
            continue
        seen[m.value().decode()] = seen.get(m.value().decode(), 0) + 1
    c.close()
    return seen


def commits_and_aborts():
    p = producer("w")
    p.init_transactions(LIMIT)
    committed, everything = {}, {}
    for n in range(30):
        p.begin_transaction()
        for i in range(20):
            value = f"{n}/{i}"
            p.produce(f"{PREFIX}-a", value, partition=i % PARTITIONS)
            everything[value] = 1
            if n % 3 != 1:
                committed[value] = 1
        if n % 3 == 1:
            p.flush()
            p.abort_transaction(LIMIT)
        else:
            p.commit_transaction(LIMIT)
    check("read_committed sees every committed record once, no aborted one", committed, read("a", "read_committed"))
    check("read_uncommitted sees all", everything, read("a", "read_uncommitted"))


def leave_open(transactional_id, topic):
    p = Producer({"bootstrap.servers": BOOTSTRAP, "transactional.id": transactional_id, "transaction.timeout.ms": 600_000})
    p.init_transactions(LIMIT)
    p.begin_transaction()
    p.produce(topic, "open", partition=0)
    p.flush()
    print("open", flush=True)
    time.sleep(600)


def fencing():
    first, second = producer("f"), producer("f")
    first.init_transactions(LIMIT)
    first.begin_transaction()
    first.produce(f"{PREFIX}-fenced", "of the first", partition=0)
    first.flush()
    second.init_transactions(LIMIT)
    caught = "nothing"
    try:
        first.produce(f"{PREFIX}-fenced", "zombie", partition=1)
        first.commit_transaction(LIMIT)
    except KafkaException as e:
        caught = "fenced" if e.args[0].fatal() else str(e)
    check("the older instance", "fenced", caught)
    second.begin_transaction()
    second.produce(f"{PREFIX}-fenced", "of the second", partition=2)
    second.commit_transaction(LIMIT)
    check("a fenced transaction is aborted", {"of the second": 1}, read("fenced", "read_committed"))


def consume_modify_produce():
    records = 600
    feed = producer("feed")
    feed.init_transactions(LIMIT)
    feed.begin_transaction()
    for i in range(records):
        feed.produce(f"{PREFIX}-in", f"v{i}", partition=i % PARTITIONS)
    feed.commit_transaction(LIMIT)
    p, c = producer("etl"), consumer("read_committed", "etl")
    p.init_transactions(LIMIT)
    c.subscribe([f"{PREFIX}-in"])
    done, turn, deadline = 0, 0, time.time() + LIMIT
    while done < records and time.time() < deadline:
        batch = [m for m in c.consume(40, 0.5) if not m.error()]
        if not batch:
            continue
        p.begin_transaction()
        for m in batch:
            p.produce(f"{PREFIX}-out", b"done " + m.value(), partition=m.partition())
        p.send_offsets_to_transaction(c.position(c.assignment()), c.consumer_group_metadata(), LIMIT)
        turn += 1
        if turn % 3 == 2:
            p.abort_transaction(LIMIT)
            for t in c.committed(c.assignment(), LIMIT):
                t.offset = max(t.offset, 0)
                c.seek(t)
        else:
            p.commit_transaction(LIMIT)
            done += len(batch)
    c.close()
    check("consume-modify-produce with aborts: exactly once", {f"done v{i}": 1 for i in range(records)}, read("out", "read_committed"))


if len(sys.argv) > 3:
    leave_open(sys.argv[2], sys.argv[4])
    sys.exit(1)
admin = AdminClient({"bootstrap.servers": BOOTSTRAP})
for f in admin.create_topics([NewTopic(f"{PREFIX}-{t}", PARTITIONS, 1) for t in ("a", "in", "out", "fenced")]).values():
    f.result()
commits_and_aborts()
fencing()
consume_modify_produce()
