"""What holds where a caller says nothing."""

#: Where `whybox serve` listens for REST.
URL = "http://127.0.0.1:8000"
#: Seconds until an answer is of no use.
TIMEOUT = 60.0
#: How often a call is asked again, where that is safe and can help.
RETRIES = 2
#: How many calls of a batch are under way at one time.
CONCURRENCY = 4
#: How much of the image the strongest colour of an overlay covers.
OPACITY = 0.65
