"""Pairs of sentences that say the same in other words, written for this book (CC BY 4.0).

Two lines each.
"""

from __future__ import annotations

SPLITS = ("calibration", "test")

_CALIBRATION = """
The train to the coast was forty minutes late.
We reached the seaside almost three quarters of an hour behind schedule.
She paid for both tickets with her phone.
Using her mobile, she bought the two tickets.
Can you recommend a quiet hotel near the station?
Is there a calm place to stay close to the railway?
All flights to Oslo were cancelled because of fog.
Fog grounded every plane bound for Oslo.
Add the eggs one by one and keep stirring.
Stir the whole time while you put in each egg separately.
This soup needs more salt and a little lemon.
A bit of lemon and some extra salt would improve the broth.
He burnt the rice because he forgot to turn the heat down.
The rice got scorched, as he had not lowered the flame.
Strong coffee keeps me awake all night.
If I drink an intense espresso, I cannot sleep until morning.
The old laptop shuts down whenever it gets warm.
As soon as it heats up, my ageing notebook switches itself off.
How do I reset a password that I have forgotten?
I don't remember my login secret; how can I set a new one?
The update fixed the crash but made the app slower.
After the patch the program no longer crashes, yet it runs less quickly.
Version 2.1 removes three functions and adds one.
One function is new in release 2.1, and three are gone.
Our printer refuses to work with the new driver.
With the latest driver installed, nothing can be printed.
The doctor told him to rest for two weeks.
He was advised by his physician to take a fortnight off.
Washing your hands prevents many infections.
A lot of diseases can be avoided by hand hygiene.
Her fever went down after a day.
Twenty-four hours later she no longer had a high temperature.
Too little sleep makes it hard to concentrate.
It is difficult to focus when you are tired.
The bank raised its interest rate by half a per cent.
Borrowing from the bank now costs 0.5 % more.
House prices have fallen for the third month in a row.
Homes got cheaper again, as in the two months before.
They sold the company for 12 million euros.
The firm changed hands at a price of €12m.
Profits doubled although fewer cars were sold.
Despite lower car sales, earnings were twice as high.
The goalkeeper saved two penalties in the final.
In the last match, two spot kicks were stopped by the keeper.
Our team lost by a single point.
We were beaten by the smallest possible margin.
She runs ten kilometres before breakfast.
Every morning, prior to eating, she jogs 10 km.
The referee stopped the game because of the storm.
Play was interrupted by the umpire as a thunderstorm arrived.
Penguins cannot fly, but they swim very well.
Although unable to fly, a penguin is an excellent swimmer.
The dog barks at everyone who comes to the door.
Whoever knocks gets barked at by our hound.
Bees find their way home by the position of the sun.
For navigation back to the hive, honeybees rely on where the sun stands.
Our cat brought a mouse into the kitchen.
A mouse was carried into the house by the cat.
Heavy rain flooded the cellar last night.
The basement filled with water after yesterday evening's downpour.
It will be sunny tomorrow, with a light wind from the west.
Expect clear skies and a gentle westerly breeze the next day.
The first snow of the year fell on Monday.
On Monday it snowed for the first time this winter.
Water boils at a lower temperature on high mountains.
High up in the mountains, less heat is needed before water starts to boil.
Light takes about eight minutes from the sun to the earth.
The sun's rays need some eight minutes to get here.
Iron rusts when it meets water and air.
Moisture and oxygen make iron corrode.
The moon is moving slowly away from us.
Year by year, the distance between the earth and its moon grows.
The museum is closed on Mondays.
You cannot visit the gallery on the first day of the week.
This novel tells the story of three sisters during the war.
The book is about a family's three daughters in wartime.
The film was far too long, and the ending disappointed us.
We did not like how the movie ended, and it went on forever.
He learned to play the violin when he was five.
At the age of five he took up the fiddle.
The orchestra tuned their instruments before the concert.
Prior to performing, the musicians adjusted their pitch.
The court decided that the contract was not valid.
According to the judges, the agreement had no legal force.
Parliament passed the law with a small majority.
The bill was narrowly approved by the members of parliament.
Voters can send their ballot by post.
It is possible to take part in the election by mail.
The teacher explained fractions with slices of pizza.
To make fractions clear, pieces of pizza were used in class.
Students must hand in their essays by Friday noon.
The deadline for the written work is Friday at twelve.
She speaks four languages and is learning a fifth.
Fluent in four tongues, she is now studying another.
The bridge will be closed for repairs until spring.
Because of maintenance, nobody can cross the bridge before spring.
My neighbour plays loud music late at night.
Late in the evening the person next door turns the volume up.
I'm sorry, but I can't come to your party.
Unfortunately I won't be able to attend your celebration.
"""

_TEST = """
My suitcase did not arrive with the plane.
The airline lost my luggage.
The bus stops right in front of the library.
There is a bus stop just outside the library.
We drove through the night to get there by morning.
To arrive at dawn, we were on the road all night.
Parking in the city centre costs four euros an hour.
You pay 4 € per hour to leave your car downtown.
The ferry does not sail in strong wind.
When it is very windy, the boat stays in the harbour.
A return ticket is cheaper than two single ones.
Buying there-and-back together costs less than each way alone.
Please fasten your seat belts before we take off.
Buckle up now, as the aircraft is about to depart.
The taxi driver knew a shortcut.
Our cab took a quicker way that the chauffeur was familiar with.
The hotel room was small but very clean.
Our accommodation was tidy, if not exactly spacious.
You need a visa to enter the country.
Visitors are not let in without a visa.
Let the dough rest for an hour in a warm place.
Leave the dough somewhere warm for sixty minutes.
Cut the onions finely and fry them in butter.
Chop the onions into small pieces, then sauté them in butter.
This bread is baked without yeast.
No yeast is used to make this loaf.
Pour the sauce over the pasta just before serving.
The noodles get their sauce at the last moment.
I don't eat meat, but I like fish.
Fish is fine for me; meat is not.
The cake was so sweet that nobody finished it.
No one could eat up the cake, as it contained too much sugar.
Keep the milk in the fridge after opening.
Once opened, milk belongs in the refrigerator.
Dinner will be ready in twenty minutes.
We can eat in about a third of an hour.
He drinks his tea with honey instead of sugar.
Honey, not sugar, is what he sweetens his tea with.
The restaurant was full, so we ordered a pizza at home.
As there was no free table, we had a pizza delivered.
The screen of my phone is cracked.
The glass on my mobile has a fracture.
Save your work before you close the program.
Store the file prior to quitting the application.
The battery lasts for two days of normal use.
With typical usage you need to charge it every second day.
The server was down for an hour this morning.
For sixty minutes today nobody could reach the site.
Make a copy of your files every week.
You should back up your data on a weekly basis.
The keyboard is missing a key.
One of the keys on the keyboard has fallen off.
The camera takes sharp pictures even in the dark.
Photos come out clear with this camera although there is little light.
A virus encrypted all our documents.
Malicious software made every file of ours unreadable.
This robot can climb stairs on its own.
Without help, the machine walks up a staircase.
The wireless network reaches every room of the house.
There is Wi-Fi throughout the whole building.
Regular exercise lowers blood pressure.
People who work out often have less trouble with hypertension.
Take one tablet three times a day after meals.
Swallow a pill following breakfast, lunch and dinner.
The nurse measured his pulse.
His heartbeat was checked by a nurse.
She is allergic to nuts.
Eating nuts makes her ill.
Smoking is the main cause of lung cancer.
Most tumours of the lungs come from cigarettes.
The operation took six hours and went well.
After six hours the surgery was successfully completed.
My back hurts when I sit for too long.
Long hours in a chair give me pain in the spine.
The vaccine protects children from measles.
Kids who got the shot do not catch measles.
He broke his arm when he fell off the ladder.
A fall from a ladder left him with a fractured arm.
Drink plenty of water when it is hot.
In the heat you should take in a lot of fluids.
Unemployment has reached its lowest level in ten years.
For a decade there have never been so few people out of work.
The shop gives a discount of 20 % to students.
Students get a fifth off the price there.
She saves a hundred dollars every month.
Each month she puts 100 dollars aside.
The shares lost a third of their value overnight.
Between two days the stock fell by about 33 per cent.
He could not pay back the loan in time.
The money he had borrowed was not returned by the due date.
Taxes on petrol will rise next year.
From next year on, fuel is going to be taxed more heavily.
The factory employs eight hundred people.
800 workers have jobs at the plant.
They negotiated for days before they signed the contract.
The deal was concluded after lengthy talks.
Our rent has gone up again.
Once more we have to pay more for the flat.
Most customers prefer to pay by card.
The majority of buyers would rather not use cash.
The striker scored twice in the last ten minutes.
Two late goals came from the forward.
She won the race by less than a second.
Her lead at the finish was below one second.
He has played chess since he was a child.
Chess has been his game from an early age.
The swimmer broke the world record by a hair.
The world's best time was beaten by the narrowest margin in the pool.
The match was decided on penalties.
A shoot-out settled the game.
Our coach makes us train in the rain.
Even when it pours, the trainer wants us to practise.
Thousands of people watched the marathon from the pavement.
The long-distance run had a huge crowd along the street.
The tennis player injured her wrist during practice.
While training, she hurt her wrist and could not hold the racket.
Skiing is only possible above two thousand metres this winter.
This season there is enough snow for skis only at great height.
The champion announced that she would retire.
The title holder said she was ending her career.
Elephants can remember places for decades.
An elephant does not forget a location even after many years.
The swallows fly south in autumn.
When summer is over, these birds migrate to warmer regions.
Sharks have existed for longer than trees.
There were sharks on earth before the first trees grew.
The kitten fell asleep on my lap.
A young cat dozed off while sitting on my knees.
Owls hunt at night and sleep during the day.
An owl looks for prey in the dark and rests in daylight.
The river is home to many kinds of fish.
Numerous species of fish live in this stream.
A fox has been stealing our chickens.
Our hens keep disappearing because of a fox.
Spiders have eight legs, insects only six.
An insect has two legs fewer than a spider.
The garden is full of roses in June.
In early summer roses bloom everywhere behind the house.
This tree loses its leaves before winter.
By the cold season the branches of this tree are bare.
It has not rained for six weeks.
There has been no rain for a month and a half.
The storm tore the roof off the barn.
Strong winds blew away the top of the barn.
Temperatures will drop below zero tonight.
Expect frost in the coming hours of darkness.
The lake freezes over every January.
Each year in January the lake is covered by ice.
Summers are getting hotter because of climate change.
Global warming makes the warm season ever more extreme.
The earthquake was felt in three countries.
People in three nations noticed the ground shaking.
Sound travels faster in water than in air.
Noise moves more quickly under water than above it.
The heart pumps blood through the body.
Blood is moved around the organism by the heart.
Plants turn sunlight into sugar.
From the light of the sun, green leaves make sugar.
A triangle with three equal sides has three equal angles.
If all sides of a triangle have the same length, its angles are the same too.
The telescope found a planet as large as Jupiter.
A world of Jupiter's size was discovered by the observatory.
Ice is lighter than water, so it floats.
Because of its lower density, frozen water swims on top.
The experiment was repeated ten times with the same result.
Ten runs of the test all gave an identical outcome.
Gold does not react with most acids.
Most acids leave gold unchanged.
Computers count with zeros and ones.
Machines do arithmetic using only two digits.
The painting was stolen from the museum in 1990.
In 1990 thieves took the picture out of the gallery.
The singer forgot the words of her own song.
On stage she could not remember the lyrics that she had written.
The play opens with a murder.
Someone is killed in the first scene of the drama.
He takes photographs of abandoned houses.
Empty buildings are what he likes to capture with his camera.
The library lends out films as well as books.
Apart from books, you can borrow movies there.
She has been writing a diary since her wedding.
Ever since she got married, she has kept a journal.
The tickets for the concert were sold out within minutes.
It took only a few minutes until no seats for the show were left.
The witness changed her story in court.
In front of the judge she suddenly told a different version.
The mayor was re-elected with a clear majority.
Voters gave the head of the city another term by a wide margin.
The police arrested two men after the robbery.
Following the hold-up, two suspects were taken into custody.
The two countries signed a peace treaty.
Both states formally agreed to end the war.
The lesson begins at half past eight.
Class starts at 8:30.
Nobody in the class understood the last question.
The final question was a mystery to all pupils.
The baby cried until its mother came back.
Only when mum returned did the infant stop weeping.
Thank you for your help; I could not have done it alone.
Without your support I would have failed, so thanks a lot.
"""


def sentence_pairs(split: str = "test") -> list[tuple[str, str]]:
    """Pairs of English sentences of the same meaning: 50 for ``"calibration"``, 100 to ``"test"``.

    >>> sentence_pairs()[0]
    ('My suitcase did not arrive with the plane.', 'The airline lost my luggage.')
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    lines = (_CALIBRATION if split == "calibration" else _TEST).strip().split("\n")
    return list(zip(lines[::2], lines[1::2], strict=True))


def sentences(split: str = "test") -> list[str]:
    """The same as one list: sentence k and sentence k + n/2 say the same.

    >>> len(sentences()), len(sentences("calibration"))
    (200, 100)
    """
    first, second = zip(*sentence_pairs(split), strict=True)
    return [*first, *second]
