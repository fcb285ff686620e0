"""Labelled messages of a Kafka topic as an iterator of (features, label), as river's sets are."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moeapps.errors import ArgumentError, DataIntegrityError, DataNotFoundError, MissingExtraError

_PARTITION_EOF = -191  # a client told to report the end of a partition reports it as an error

Instance = tuple[dict[str, Any], Any]


class KafkaSource:
    """Iterates over ``(x, y)`` from a topic and commits what has been processed.

    A message counts as processed when the loop asks for the next one. Its offset is committed after
    that, never before, so a consumer that dies loses nothing: it gets the last few messages again
    (at least once). To learn each message exactly once, save :attr:`positions` together with the
    model and give them back as ``start``; they go before what the group has committed.

    Args:
        topic: Name of the topic.
        bootstrap_servers: ``"host:port"``, several separated by commas.
        group: Consumer group. Members share the partitions; offsets are kept under its name.
        value: Turns the bytes of a message into a mapping; None leaves the message out.
        target: Key of the label, which is taken out of the features. ``y`` is None without it.
        limit: Stop after this many instances.
        idle_seconds: Stop when no message came for so long; None waits for ever.
        commit_every: Commit after this many processed messages, and at the end.
        start: Offset of the next message by partition; other partitions start at the group's
            committed offset, or at the oldest message.
        config: More settings of the client (security, for example).
        consumer: A client with the interface of ``confluent_kafka.Consumer``, instead of a new one.

    Attributes:
        positions: Offset of the next message by partition, after what was processed.

    Raises:
        MissingExtraError: confluent-kafka is not installed.
        DataNotFoundError: Kafka does not have the topic, or refuses to hand it out.
        DataIntegrityError: A message cannot be read; says which. ``value`` may return None for it.

    Notes:
        The client is confluent-kafka, kept up by the maker of the C library below it. Iterating
        again goes on after the last processed message; leaving the loop does not process the
        message at hand.

    Example:
        >>> source = KafkaSource("clicks", "localhost:9092", group="moeapps", target="bought")
        >>> source.positions
        {}
        >>> for x, y in source:  # doctest: +SKIP
        ...     model.learn_one(x, y)
    """

    def __init__(
        self,
        topic: str,
        bootstrap_servers: str = "localhost:9092",
        *,
        group: str = "moeapps",
        value: Callable[[bytes], Mapping[str, Any] | None] = json.loads,
        target: str = "y",
        limit: int | None = None,
        idle_seconds: float | None = None,
        commit_every: int = 1000,
        start: Mapping[int, int] | None = None,
        config: Mapping[str, Any] | None = None,
        consumer: Any = None,
    ) -> None:
        if commit_every < 1:
            raise ArgumentError(f"commit_every={commit_every} must be 1 or more messages.")
        self.topic = topic
        self.bootstrap_servers = bootstrap_servers
        self.group = group
        self.value = value
        self.target = target
        self.limit = limit
        self.idle_seconds = idle_seconds
        self.commit_every = commit_every
        self.config = dict(config or {})
        self.positions: dict[int, int] = dict(start or {})
        self._consumer = consumer
        self._processed: dict[int, Any] = {}  # by partition, the last message not yet committed
        self._resume: dict[int, int] = {}
        self._closing = False

    def __iter__(self) -> Iterator[Instance]:
        consumer = self._connect() if self._consumer is None else self._consumer
        self._resume, self._closing = dict(self.positions), False
        consumer.subscribe(
            [self.topic], on_assign=self._seek, on_revoke=self._give_up, on_lost=self._lose
        )
        try:
            yield from self._instances(consumer)
        finally:
            self._closing = True
            self._commit(consumer)
            consumer.close()

    def _instances(self, consumer: Any) -> Iterator[Instance]:
        given, waiting = 0, 0
        for message in self._messages(consumer):
            instance = self._read(message)
            if instance is not None:
                yield instance
                given += 1
            self.positions[message.partition()] = message.offset() + 1
            self._processed[message.partition()] = message
            waiting += 1
            if waiting >= self.commit_every:
                self._commit(consumer)
                waiting = 0
            if self.limit is not None and given >= self.limit:
                return

    def _messages(self, consumer: Any) -> Iterator[Any]:
        last = time.monotonic()
        while self.idle_seconds is None or time.monotonic() - last < self.idle_seconds:
            message = consumer.poll(0.1)
            if message is None:
                continue
            error = message.error()
            if error is None:
                yield message
                last = time.monotonic()
            elif error.code() != _PARTITION_EOF and not error.retriable():
                raise DataNotFoundError(
                    f"Kafka does not hand out topic {self.topic!r} at {self.bootstrap_servers}: "
                    f"{error.str()}. Check the name of the topic, and the rights in config."
                )

    def _read(self, message: Any) -> Instance | None:
        try:
            fields = self.value(message.value())
            if fields is None:
                return None
            x = dict(fields)
        except (ValueError, TypeError) as error:
            raise DataIntegrityError(
                f"Message {message.offset()} of partition {message.partition()} in topic "
                f"{self.topic!r} is not a mapping of features: {error}. Pass a value function that "
                "reads it, or returns None to leave it out."
            ) from error
        y = x.pop(self.target, None)
        return x, y

    def _commit(self, consumer: Any) -> None:
        while self._processed:
            _, message = self._processed.popitem()
            consumer.commit(message=message, asynchronous=False)

    def _seek(self, consumer: Any, partitions: list[Any]) -> None:
        for partition in partitions:
            # Only once: when it comes back from another member, the group's offset is the newer.
            partition.offset = self._resume.pop(partition.partition, partition.offset)
        consumer.assign(partitions)

    def _give_up(self, consumer: Any, partitions: list[Any]) -> None:
        """Another member takes these over: let it start after what was processed here."""
        self._commit(consumer)
        self._lose(consumer, partitions)

    def _lose(self, consumer: Any, partitions: list[Any]) -> None:
        for partition in partitions:
            self._processed.pop(partition.partition, None)
            if not self._closing:
                self.positions.pop(partition.partition, None)

    def _connect(self) -> Any:
        try:
            from confluent_kafka import Consumer
        except ModuleNotFoundError as error:
            raise MissingExtraError("kafka", "confluent-kafka") from error
        settings = {"auto.offset.reset": "earliest", **self.config}
        settings |= {
            "bootstrap.servers": self.bootstrap_servers,
            "group.id": self.group,
            "enable.auto.commit": False,  # this class commits, after the work
        }
        return Consumer(settings)


def kafka_source(
    topic: str, bootstrap_servers: str = "localhost:9092", **options: Any
) -> KafkaSource:
    """A :class:`KafkaSource`, made like river's other sources of a stream.

    Args:
        topic: Name of the topic.
        bootstrap_servers: ``"host:port"``, several separated by commas.
        **options: As of :class:`KafkaSource`.

    Example:
        >>> kafka_source("clicks", limit=10).topic
        'clicks'
    """
    return KafkaSource(topic, bootstrap_servers, **options)
