"""What stands before the routes when it is switched on: pure ASGI, one file each, outermost first.

    audit -> auth -> feedback -> moderation -> routes

They meet in one `Exchange` for each request (`exchange.py`): who asks, the body, what was decided.
"""
