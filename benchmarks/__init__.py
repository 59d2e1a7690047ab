"""What the package costs, next to LangChain alone and to what else people use.

``python -m benchmarks`` runs all of it.  `sources` makes the tokens, `ways` iterates them,
`harness` times; each of `burst`, `queues`, `paced`, `memory`, `importing` and `over_http`
measures one thing; `targets` says what is to be reached; `report` and `plots` show it.
"""
