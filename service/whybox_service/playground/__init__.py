"""The playground's files: a page of plain HTML, CSS and JavaScript that asks the service from a browser.

`whybox_service.rest.playground` serves them as they are; nothing is built.
"""
