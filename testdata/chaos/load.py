#!/usr/bin/env python3
"""A client of internal/chaos on confluent-kafka (librdkafka).

load.py produce|consume BOOTSTRAP TOPIC PARTITIONS NAME RATE BYTES
Ends on SIGTERM; a producer first finishes what it has begun.
"""
import signal
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

role, bootstrap, topic, partitions, name, rate, size = sys.argv[1:]
partitions, rate, size = int(partitions), int(rate), int(size)
running = True


def stop(*_):
    global running
    running = False


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, signal.SIG_IGN)


def produce():
    p = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "client.id": "zone=zone-b," + name,
                  "error_cb": lambda e: print(name, e, file=sys.stderr)})

    def delivered(err, msg):
        if err is not None:
            print("E", err)
        else:
            print(f"A {msg.value().decode()}\t{msg.partition()}\t{msg.offset()}", flush=True)

    began, sent = time.monotonic(), 0
    while running:
        while sent < (time.monotonic() - began) * rate and running:
            partition = sent % partitions
            value = f"{name} {partition} {sent // partitions} ".ljust(size, "x")
            try:
                p.produce(topic, value, partition=partition, on_delivery=delivered)
                sent += 1
            except BufferError:
                p.poll(0.1)
        p.poll(0.01)
    if p.flush(170):
        sys.exit("records are left")


def consume():
    c = Consumer({"bootstrap.servers": bootstrap, "group.id": name, "enable.auto.commit": False, "client.id": name,
                  "client.rack": "zone-a", "auto.offset.reset": "error"})
    c.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(partitions)])
    while running:
        for m in c.consume(1000, 0.1):
            if m.error():
                print(name, m.error(), file=sys.stderr)
            else:
                print(f"R {m.partition()}\t{m.offset()}", flush=False)
        sys.stdout.flush()
    c.close()


produce() if role == "produce" else consume()
