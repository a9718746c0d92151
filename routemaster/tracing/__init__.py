"""Traces by OpenTelemetry (option `tracing`, extra `otel`). Nothing else in the bus imports its libraries.

    POST /topics/cats  traceparent ──> server span ──> its context is kept with each event (`traces.Traced`)
    batch of events ──> client span of the attempt, linked to these contexts ──> POST callback  traceparent

- *Requests* (`requests`): a publication and a poll is each a server span, whose parent is what the client's
  `traceparent` says, or a root. One that is invalid is ignored (W3C Trace Context, section 3.2).
- *Attempts* (`attempts`): an attempt to deliver carries the events of many publications, so its span is the root
  of a trace of its own, with a link to each of them.
- *Sampling* (`sampling`): by `OTEL_TRACES_SAMPLER`, `parentbased_always_on` by default. What a parent is for a
  request, the links are for an attempt: with a sampled publication in its batch it is sampled.
- *Export* (`exporting`): spans wait in a bounded queue for a thread of the SDK, which sends them; if it is full or
  the collector is down they are lost, which is logged seldom. Each process has a queue and a thread of its own.

Names of spans and attributes follow the Semantic Conventions 1.44.0 for HTTP and messaging, those of messaging in
the state "development". `url.path`, `url.query` and headers are left out: they may have a token.
"""
