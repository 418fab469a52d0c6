#!/usr/bin/env python3
"""A member of a consumer group on confluent-kafka (librdkafka): prints the value of every record it reads.

confluent.py BOOTSTRAP TOPIC GROUP classic|consumer
Commits and leaves on SIGTERM.
"""
import signal
import sys

from confluent_kafka import Consumer

bootstrap, topic, group, protocol = sys.argv[1:]
running = True


def stop(*_):
    global running
    running = False


signal.signal(signal.SIGTERM, stop)
config = {"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest"}
if protocol == "consumer":
    config["group.protocol"] = "consumer"
c = Consumer(config)
c.subscribe([topic])
while running:
    msg = c.poll(0.2)
    if msg is None:
        continue
    if msg.error():
        print(msg.error(), file=sys.stderr)
        continue
    print(msg.value().decode(), flush=True)
c.close()
