import json
import multiprocessing
import os
import signal
import sys
from types import SimpleNamespace

import pytest

from moeapps.errors import (
    ArgumentError,
    DataIntegrityError,
    DataNotFoundError,
    MissingExtraError,
)
from moeapps.streams.kafka import KafkaSource, kafka_source


class Message:
    def __init__(self, partition, offset, value, error=None):
        self._all = partition, offset, value, error

    def partition(self):
        return self._all[0]

    def offset(self):
        return self._all[1]

    def value(self):
        return self._all[2]

    def error(self):
        return self._all[3]


class FakeError:
    def __init__(self, code, text="", *, retriable=False):
        self._all = code, text, retriable

    def code(self):
        return self._all[0]

    def str(self):
        return self._all[1]

    def retriable(self):
        return self._all[2]


class FakeConsumer:
    """A broker's log by partition, and what a client does with it."""

    def __init__(self, log, *, committed=None, errors=()):
        self.log = log
        self.committed = {} if committed is None else committed
        self.errors = list(errors)
        self.closed = False
        self.seen = []

    def subscribe(self, topics, *, on_assign, on_revoke, on_lost):
        self.topics, self.on_revoke = topics, on_revoke
        # -1001: the group's committed offset, or the oldest message
        on_assign(self, [SimpleNamespace(partition=p, offset=-1001) for p in self.log])

    def assign(self, partitions):
        self.next = {
            p.partition: self.committed.get(p.partition, 0) if p.offset == -1001 else p.offset
            for p in partitions
        }

    def poll(self, timeout):
        if self.errors:
            return Message(0, 0, None, self.errors.pop(0))
        for partition, offset in self.next.items():
            if offset < len(self.log[partition]):
                self.next[partition] += 1
                return Message(partition, offset, self.log[partition][offset])
        return None

    def commit(self, *, message, asynchronous):
        assert asynchronous is False
        self.committed[message.partition()] = message.offset() + 1

    def close(self):
        self.on_revoke(self, [SimpleNamespace(partition=p) for p in self.next])
        self.closed = True


def log_of(n, partition=0):
    return [
        json.dumps({"a": i, "b": f"w{i}", "y": i % 2, "from": partition}).encode() for i in range(n)
    ]


def source(consumer, **options):
    return KafkaSource("t", consumer=consumer, **{"idle_seconds": 0.0, **options})


def drain(consumer, **options):
    # An idle time of 0 ends before the first poll; limits end these loops.
    return list(source(consumer, idle_seconds=None, **options))


def test_messages_become_features_and_label():
    consumer = FakeConsumer({0: log_of(2)})
    assert drain(consumer, limit=2) == [
        ({"a": 0, "b": "w0", "from": 0}, 0),
        ({"a": 1, "b": "w1", "from": 0}, 1),
    ]
    assert consumer.topics == ["t"]
    assert consumer.closed


def test_label_key_can_be_named_and_can_be_absent():
    consumer = FakeConsumer({0: log_of(1)})
    assert drain(consumer, limit=1, target="b")[0][1] == "w0"
    assert drain(FakeConsumer({0: log_of(1)}), limit=1, target="none")[0][1] is None


def test_offset_is_committed_only_after_the_next_one_is_asked_for():
    consumer = FakeConsumer({0: log_of(5)})
    stream = iter(source(consumer, idle_seconds=None, commit_every=1))
    next(stream)
    assert consumer.committed == {}
    next(stream)
    assert consumer.committed == {0: 1}
    next(stream)
    assert consumer.committed == {0: 2}


def test_a_loop_that_breaks_leaves_the_message_at_hand_unprocessed():
    consumer = FakeConsumer({0: log_of(5)})
    stream = iter(source(consumer, idle_seconds=None))
    next(stream), next(stream), next(stream)
    stream.close()
    assert consumer.committed == {0: 2}
    assert consumer.closed


def test_every_message_is_delivered_though_consumers_die_without_closing():
    log, committed, seen = {0: log_of(30), 1: log_of(20, 1)}, {}, []
    for _ in range(6):  # each dies with up to three processed messages not yet committed
        stream = iter(
            source(FakeConsumer(log, committed=committed), idle_seconds=None, commit_every=4)
        )
        seen += [next(stream)[0] for _ in range(8)]
        stream.gi_frame.f_locals["consumer"].commit = lambda **_: None
    seen += [
        x
        for x, _ in drain(
            FakeConsumer(log, committed=committed), limit=50 - sum(committed.values())
        )
    ]
    assert {(x["from"], x["a"]) for x in seen} == {(0, i) for i in range(30)} | {
        (1, i) for i in range(20)
    }
    assert len(seen) > 50  # some came twice: that is the price


def test_saved_positions_make_every_message_count_once():
    log, committed, seen, positions = {0: log_of(10), 1: log_of(10, 1)}, {}, [], {}
    for _ in range(4):
        one = source(
            FakeConsumer(log, committed=committed), idle_seconds=None, limit=5, start=positions,
            commit_every=1000,
        )  # fmt: skip
        seen += [(x["from"], x["a"]) for x, _ in one]
        positions = dict(one.positions)
        committed.clear()  # whatever the group remembers, the positions win
    assert seen == [(0, i) for i in range(10)] + [(1, i) for i in range(10)]
    assert positions == {0: 10, 1: 10}


def test_iterating_again_goes_on():
    one = source(FakeConsumer({0: log_of(6)}), idle_seconds=None, limit=3)
    assert [x["a"] for x, _ in one] == [0, 1, 2]
    assert [x["a"] for x, _ in one] == [3, 4, 5]


def test_partition_taken_away_is_committed_and_forgotten():
    consumer = FakeConsumer({0: log_of(5), 1: log_of(5, 1)})
    one = source(consumer, idle_seconds=None)
    stream = iter(one)
    next(stream), next(stream)
    consumer.on_revoke(consumer, [SimpleNamespace(partition=0)])
    assert consumer.committed == {0: 1}
    assert one.positions == {}


def test_value_function_can_leave_messages_out():
    def value(raw):
        fields = json.loads(raw)
        return fields if fields["a"] % 2 else None

    one = source(FakeConsumer({0: log_of(6)}), idle_seconds=None, limit=3, value=value)
    assert [x["a"] for x, _ in one] == [1, 3, 5]
    assert one.positions == {0: 6}


@pytest.mark.parametrize("raw", [b"{not json", b"3", b"\xff"])
def test_unreadable_message_is_named(raw):
    consumer = FakeConsumer({0: [*log_of(1), raw]})
    with pytest.raises(DataIntegrityError, match=r"Message 1 of partition 0 in topic 't'"):
        drain(consumer)
    assert consumer.committed == {0: 1}  # the good one before it


def test_idle_source_ends():
    assert len(list(source(FakeConsumer({0: log_of(3)}), idle_seconds=0.05))) == 3


def test_passing_errors_are_waited_out_and_lasting_ones_raised():
    passing = [FakeError(-191), FakeError(7, "request timed out", retriable=True)]
    assert len(drain(FakeConsumer({0: log_of(2)}, errors=passing), limit=2)) == 2
    lasting = [FakeError(3, "Broker: Unknown topic or partition")]
    with pytest.raises(DataNotFoundError, match="Unknown topic"):
        drain(FakeConsumer({0: log_of(2)}, errors=lasting))


def test_arguments_are_checked():
    with pytest.raises(ArgumentError, match="commit_every=0"):
        KafkaSource("t", commit_every=0)


def test_missing_client_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(MissingExtraError, match="confluent-kafka"):
        next(iter(kafka_source("t")))


# ------------------------------------------------------- on a broker: librdkafka's own, over TCP


@pytest.fixture
def broker():
    kafka = pytest.importorskip(
        "confluent_kafka", reason="needs confluent-kafka: pip install 'moeapps[kafka]'"
    )
    producer = kafka.Producer(
        {"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0}
    )
    (node,) = producer.list_topics(timeout=10).brokers.values()
    return SimpleNamespace(producer=producer, address=f"{node.host}:{node.port}")


def produce(broker, n):
    for i in range(n):
        broker.producer.produce("t", json.dumps({"a": i, "y": i % 3}), partition=0)
    broker.producer.flush(10)


# This broker notices that a member has left only when its session times out.
SESSION = {"session.timeout.ms": 3500, "heartbeat.interval.ms": 500}


def on(broker, **options):
    return kafka_source("t", broker.address, group="g", idle_seconds=15, config=SESSION, **options)


def test_broker_delivers_commits_and_resumes(broker):
    produce(broker, 60)
    first = on(broker, limit=25)
    assert [x["a"] for x, _ in first] == list(range(25))
    assert first.positions == {0: 25}
    assert [(x["a"], y) for x, y in on(broker, limit=5)] == [(i, i % 3) for i in range(25, 30)]
    assert [x["a"] for x, _ in on(broker, limit=2, start={0: 10})] == [10, 11]


def consume_and_die(address):
    stream = kafka_source("t", address, group="g", commit_every=10, idle_seconds=15, config=SESSION)
    for i, _ in enumerate(stream):
        if i == 25:
            os.kill(os.getpid(), signal.SIGKILL)


def test_broker_hands_a_killed_consumers_messages_to_the_next(broker):
    produce(broker, 40)
    process = multiprocessing.get_context("spawn").Process(
        target=consume_and_die, args=(broker.address,)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    seen = [x["a"] for x, _ in on(broker, limit=20)]
    assert seen == list(range(20, 40))  # 20 were committed, five more processed and not committed
