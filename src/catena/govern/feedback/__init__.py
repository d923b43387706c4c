"""What users say of answers: kept sealed beside the audit, joined with it into traces.

POST /v1/feedback -> book (whose answer was it? rating, consent, sealed words) -> traces (with the audit) -> data
"""
